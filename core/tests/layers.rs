//! The house's order, checked on its text: modules import only downwards, and each library or system
//! facility that is walled in is named only behind its wall.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::path::{Path, PathBuf};

/// The layers, bottom up; modules of one layer do not import each other.
const LAYERS: [&[&str]; 10] = [
    &["error", "clock", "config", "failpoint", "tasks"],
    &["accept"],
    &["storage", "peer"],
    &["mvcc", "lease"],
    &["watch"],
    &["apply"],
    &["raft", "backup"],
    &["node"],
    &["api"],
    &["server"],
];

/// What only some folders or files may name.
const WALLS: [(&str, &[&str]); 5] = [
    ("openraft", &["raft/"]),
    ("fjall", &["storage/kv/"]),
    ("tokio::net", &["accept.rs", "peer/", "server.rs"]),
    ("std::net::TcpStream", &["accept.rs", "peer/", "server.rs"]),
    ("tokio::spawn", &["tasks.rs"]),
];

#[test]
fn modules_import_only_downwards() {
    let mut faults = Vec::new();
    for file in sources() {
        let Some(own) = module(&file.path) else {
            continue;
        };
        let own_layer = layer(own).unwrap_or_else(|| panic!("{own} has no layer"));
        for (number, line) in file.code() {
            for used in crate_paths(line) {
                let Some(used_layer) = layer(used) else {
                    continue;
                };
                if used != own && used_layer >= own_layer {
                    faults.push(format!(
                        "{}:{number}: {own} uses {used}",
                        file.path.display()
                    ));
                }
            }
        }
    }
    assert!(
        faults.is_empty(),
        "imports that do not go down:\n{}",
        faults.join("\n")
    );
}

#[test]
fn what_is_walled_in_is_named_only_behind_its_wall() {
    let mut faults = Vec::new();
    for file in sources() {
        let path = file.path.to_string_lossy().into_owned();
        for (name, allowed) in WALLS {
            if allowed.iter().any(|allowed| path.starts_with(allowed)) || path.contains("tests") {
                continue;
            }
            for (number, line) in file.code() {
                if names(line, name) {
                    faults.push(format!("{path}:{number}: {name}"));
                }
            }
        }
    }
    assert!(
        faults.is_empty(),
        "named outside its wall:\n{}",
        faults.join("\n")
    );
}

#[test]
fn the_checks_see_what_they_look_for() {
    let used: Vec<&str> = crate_paths("use crate::{apply, mvcc::Page}; crate::node::x()").collect();
    assert_eq!(used, ["apply", "mvcc", "node"]);
    assert!(names("let x: openraft::Config", "openraft"));
    assert!(!names("fn openraft_config()", "openraft"));
    assert!(layer("apply") < layer("raft"));
}

/// A source file of the crate, with its path below `src`.
struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    /// Its lines with their numbers, without comments and without what follows inline tests.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text
            .lines()
            .enumerate()
            .take_while(|(_, line)| !line.starts_with("mod tests {"))
            .map(|(index, line)| (index + 1, line.split("//").next().unwrap_or_default()))
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|kind| kind == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let path = path.strip_prefix(&root).unwrap().to_owned();
                found.push(Source { path, text });
            }
        }
    }
    assert!(found.len() > 50, "the sources are where this test looks");
    found
}

/// The top-level module a file belongs to; none for the crate's root.
fn module(path: &Path) -> Option<&str> {
    let first = path.iter().next()?.to_str()?;
    let name = first.strip_suffix(".rs").unwrap_or(first);
    (name != "lib").then_some(name)
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// The top-level modules named after `crate::` in a line, also in a braced list.
fn crate_paths(line: &str) -> impl Iterator<Item = &str> {
    line.match_indices("crate::").flat_map(|(at, prefix)| {
        let rest = &line[at + prefix.len()..];
        let listed = rest
            .strip_prefix('{')
            .map(|list| list.split('}').next().unwrap_or(list));
        let parts: Vec<&str> = match listed {
            Some(list) => list.split(',').map(str::trim).collect(),
            None => vec![rest],
        };
        parts.into_iter().map(|part| {
            let end = part
                .find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap_or(part.len());
            &part[..end]
        })
    })
}

/// Whether a line names `name` as a whole path, not as a part of a longer word.
fn names(line: &str, name: &str) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(name).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + name.len()..].chars().next();
        !before.is_some_and(word) && !after.is_some_and(word)
    })
}
