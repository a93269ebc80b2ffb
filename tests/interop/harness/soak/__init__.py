"""A thousand clients that come and go at random, and what may be expected of a broker meanwhile; see tests/interop/soak.

`ledger` knows what was published and what arrived, `client` is one paho client and its life, `fleet` all of them in one
loop, `memory` the broker's.
"""
