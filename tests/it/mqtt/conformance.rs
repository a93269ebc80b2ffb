//! `docs/mqtt-conformance.md` against the list of rules, the cases and the tests: a row that no existing test shows counts
//! as open, and the counts that the document tells are these.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::cases;

/// A row of the table.
struct Row {
    rule: String,
    binds: String,
    how: String,
    shown: Vec<String>,
}

fn read(path: impl AsRef<Path>) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Who is bound by each rule, in the order of the list.
fn rules(version: &str) -> Vec<(String, String)> {
    let list = read(format!("tests/data/mqtt/rules-{version}.tsv"));
    let lines = list.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let mut columns = line.split('\t').map(str::to_owned);
            (columns.next().unwrap(), columns.next().expect("who is bound"))
        })
        .collect()
}

/// The rows below the heading of a version.
fn table(document: &str, version: &str) -> Vec<Row> {
    let heading = format!("\n## MQTT {version}\n");
    let (_, part) = document.split_once(&heading).unwrap_or_else(|| panic!("no {heading:?}"));
    let part = part.split("\n## ").next().unwrap();
    let rows = part.lines().filter(|line| line.starts_with("| MQTT-"));
    rows.map(|line| {
        let columns: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [rule, binds, how, shown] = columns[..] else { panic!("not four columns: {line}") };
        let shown = shown.split(", ").map(|name| name.trim_matches('`').to_owned()).collect();
        Row { rule: rule.to_owned(), binds: binds.to_owned(), how: how.to_owned(), shown }
    })
    .collect()
}

/// `module::name` of every test below a directory.
fn tests(directory: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tests(&path, found);
            continue;
        }
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let stem = match path.file_stem().unwrap().to_str().unwrap() {
            "tests" | "mod" => path.parent().unwrap().file_name().unwrap(),
            _ => path.file_stem().unwrap(),
        };
        let text = std::fs::read_to_string(&path).unwrap();
        let mut is_test = false;
        for line in text.lines().map(str::trim) {
            if line == "#[test]" || line.starts_with("#[tokio::test") {
                is_test = true;
            } else if let Some(name) = line.strip_prefix("async fn ").or(line.strip_prefix("fn "))
                && std::mem::take(&mut is_test)
            {
                let name = name.split('(').next().unwrap();
                found.insert(format!("{}::{name}", stem.to_str().unwrap()));
            }
        }
    }
}

/// The rules of each case by its name.
fn cases() -> BTreeMap<String, Vec<String>> {
    let mut all = BTreeMap::new();
    for case in cases::files().into_iter().flat_map(|file| file.cases) {
        let name = case.name;
        assert!(!case.rules.is_empty(), "the case {name} shows no rule");
        assert!(all.insert(name.clone(), case.rules).is_none(), "two cases are called {name}");
    }
    all
}

#[test]
fn the_table_tells_what_is_shown() {
    let document = read("docs/mqtt-conformance.md");
    let mut known = BTreeSet::new();
    for directory in ["src", "tests/it"] {
        tests(&Path::new(env!("CARGO_MANIFEST_DIR")).join(directory), &mut known);
    }
    let cases = cases();
    let mut wrong = Vec::new();
    let mut listed = BTreeSet::new();
    for version in ["3.1.1", "5.0"] {
        let (rules, rows) = (rules(version), table(&document, version));
        let of_rows: Vec<_> = rows.iter().map(|row| (row.rule.clone(), row.binds.clone())).collect();
        assert_eq!(of_rows, rules, "the rows are not the rules of {version}");
        let (mut shown, mut clients, mut open) = (0, 0, 0);
        for Row { rule, binds, how, shown: names } in &rows {
            listed.insert(format!("{version} {rule}"));
            let here: BTreeSet<_> = names.iter().map(String::as_str).collect();
            let of_cases = cases.iter().filter(|(_, rules)| rules.contains(&format!("{version} {rule}")));
            for (name, _) in of_cases {
                if !here.contains(&**name) {
                    wrong.push(format!("{version} {rule}: the case {name} shows it, but is not in its row"));
                }
            }
            let exists = |name: &&str| known.contains(*name) || cases.contains_key(*name);
            if binds == "client" {
                clients += 1;
                let missing = here.iter().filter(|name| **name != "-" && !exists(name));
                wrong.extend(
                    missing.map(|name| format!("{version} {rule}: there is no test or case `{name}`")),
                );
                continue;
            }
            match here.iter().find(|name| !exists(name)) {
                None => {
                    shown += 1;
                    if how.starts_with("open") {
                        wrong.push(format!("{version} {rule}: open, and yet shown"));
                    }
                }
                Some(name) => {
                    open += 1;
                    if !how.starts_with("open") {
                        wrong.push(format!("{version} {rule}: there is no test or case `{name}`"));
                    }
                }
            }
        }
        let total = rows.len();
        let told = format!(
            "MQTT {version}: {total} rules. {shown} are met and shown by a test, {clients} bind clients alone, {open} are open."
        );
        if !document.contains(&told) {
            wrong.push(format!("the document does not say: {told}"));
        }
    }
    for (name, rules) in &cases {
        for rule in rules.iter().filter(|rule| !listed.contains(*rule)) {
            wrong.push(format!("{name}: there is no rule {rule}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
