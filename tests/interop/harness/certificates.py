"""Certificates made for a run."""

import subprocess

KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def openssl(directory, *words):
    """One command of openssl, its files in the directory."""
    subprocess.run(("openssl", *words), check=True, capture_output=True, cwd=directory)


def certify(directory):
    """A server's certificate that `authority` has signed, and a device's that `clients` has signed."""
    for signer, name, names in (("authority", "server", "IP:127.0.0.1,DNS:localhost"), ("clients", "device", "DNS:device")):
        files = ("-keyout", f"{signer}.key", "-out", f"{signer}.pem")
        openssl(directory, "req", "-x509", *KEY, "-days", "2", "-subj", f"/CN={signer}", *files)
        files = ("-keyout", f"{name}.key", "-out", f"{name}.csr")
        openssl(directory, "req", "-new", *KEY, "-subj", f"/CN={name}", *files)
        (directory / f"{name}.ext").write_text(f"basicConstraints=CA:FALSE\nsubjectAltName={names}\n")
        by = ("-CA", f"{signer}.pem", "-CAkey", f"{signer}.key", "-CAcreateserial", "-days", "2")
        files = ("-in", f"{name}.csr", "-extfile", f"{name}.ext", "-out", f"{name}.pem")
        openssl(directory, "x509", "-req", *files, *by)
