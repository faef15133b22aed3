//! House rules that matter are tests: sizes with a ratchet, who may import
//! whom, links that lead somewhere, words that must not stand in the tree.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use conclave_tests::laws;

/// Longest file, lines, unless the ratchet says otherwise.
const FILE_LINES: usize = 500;
/// Longest function, lines, unless the ratchet says otherwise.
const FUNCTION_LINES: usize = 70;
/// `path[::function] = lines`, one a line: what is over the limit today. An
/// entry may only shrink; one that is no longer needed must go.
const RATCHET: &str = "tests/tidy.ratchet";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the tests crate stands below the root")
        .to_owned()
}

/// Every file below the root with one of these endings, build output aside;
/// paths are relative to the root.
fn files(endings: &[&str]) -> Vec<PathBuf> {
    fn walk(dir: &Path, endings: &[&str], found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).expect("a readable folder") {
            let path = entry.expect("a readable entry").path();
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            if path.is_dir() {
                if !name.starts_with("target") && name != ".git" && name != "node_modules" {
                    walk(&path, endings, found);
                }
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                found.push(path);
            }
        }
    }
    let root = root();
    let mut found = Vec::new();
    walk(&root, endings, &mut found);
    found.sort();
    found
        .into_iter()
        .map(|path| {
            path.strip_prefix(&root)
                .expect("found below the root")
                .to_owned()
        })
        .collect()
}

fn read(path: &Path) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Functions of rustfmt-formatted code: (name, lines).
fn functions(text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else {
            continue;
        };
        let indent = &line[..line.len() - line.trim_start().len()];
        let close = format!("{indent}}}");
        let end = lines[start..].iter().position(|l| {
            *l == close
                || (l.starts_with(indent)
                    && l.trim_end().ends_with(';')
                    && l.len() - l.trim_start().len() == indent.len())
        });
        if let Some(length) = end {
            found.push((name, length + 1));
        }
    }
    found
}

fn function_name(line: &str) -> Option<String> {
    let mut words = line.trim_start();
    for word in [
        "pub(crate) ",
        "pub(super) ",
        "pub ",
        "const ",
        "async ",
        "unsafe ",
        "extern \"C\" ",
    ] {
        words = words.strip_prefix(word).unwrap_or(words);
    }
    let name = words.strip_prefix("fn ")?;
    let end = name.find(|c: char| !c.is_alphanumeric() && c != '_')?;
    Some(name[..end].to_owned())
}

fn ratchet() -> BTreeMap<String, usize> {
    read(Path::new(RATCHET))
        .lines()
        .filter(|line| !line.starts_with('#') && !line.trim().is_empty())
        .map(|line| {
            let (key, lines) = line.split_once('=').expect("`path = lines`");
            (
                key.trim().to_owned(),
                lines.trim().parse().expect("a number of lines"),
            )
        })
        .collect()
}

#[test]
fn files_and_functions_stay_small() {
    let ratchet = ratchet();
    let mut used = BTreeSet::new();
    let mut faults = Vec::new();
    let mut check = |key: String, lines: usize, limit: usize| match ratchet.get(&key) {
        Some(&allowed) => {
            used.insert(key.clone());
            if lines > allowed {
                faults.push(format!(
                    "{key}: {lines} lines, the ratchet allows {allowed}"
                ));
            } else if lines <= limit {
                faults.push(format!("{key}: {lines} lines; take it out of {RATCHET}"));
            }
        }
        None if lines > limit => faults.push(format!("{key}: {lines} lines, the limit is {limit}")),
        None => {}
    };
    for path in files(&[".rs"]) {
        let text = read(&path);
        let path = path.display().to_string();
        check(path.clone(), text.lines().count(), FILE_LINES);
        for (name, lines) in functions(&text) {
            check(format!("{path}::{name}"), lines, FUNCTION_LINES);
        }
    }
    for key in ratchet.keys().filter(|key| !used.contains(*key)) {
        faults.push(format!("{key}: not in the tree; take it out of {RATCHET}"));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Crate folder -> what of ours it may depend on (tests and benches aside).
const MAY_IMPORT: [(&str, &[&str]); 11] = [
    ("proto", &[]),
    ("credentials", &[]),
    ("probes", &[]),
    ("traces", &["conclave-credentials", "conclave-proto"]),
    ("kernels", &[]),
    ("kernels/emulator", &["conclave-kernels"]),
    ("worker/core", &[]),
    (
        "worker",
        &[
            "conclave-credentials",
            "conclave-kernels",
            "conclave-probes",
            "conclave-proto",
            "conclave-traces",
            "conclave-worker-core",
        ],
    ),
    ("coordinator/core", &["conclave-proto"]),
    (
        "coordinator",
        &[
            "conclave-coordinator-core",
            "conclave-credentials",
            "conclave-probes",
            "conclave-proto",
            "conclave-traces",
        ],
    ),
    (
        "cli",
        &[
            "conclave-coordinator",
            "conclave-credentials",
            "conclave-proto",
            "conclave-traces",
            "conclave-worker",
        ],
    ),
];

/// What the pure crates must never see.
const IMPURE: [&str; 9] = [
    "tokio",
    "candle-core",
    "tonic",
    "rand",
    "axum",
    "metrics",
    "tracing",
    "rayon",
    "chrono",
];

fn dependencies(folder: &str) -> BTreeSet<String> {
    let manifest = read(&Path::new(folder).join("Cargo.toml"));
    let mut inside = false;
    let mut found = BTreeSet::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            inside = line == "[dependencies]";
        } else if inside && let Some(end) = line.find(['.', ' ', '=']) {
            found.insert(line[..end].to_owned());
        }
    }
    found
}

#[test]
fn crates_import_only_what_the_map_allows() {
    for (folder, allowed) in MAY_IMPORT {
        let dependencies = dependencies(folder);
        for dependency in dependencies.iter().filter(|d| d.starts_with("conclave-")) {
            assert!(
                allowed.contains(&dependency.as_str()),
                "{folder} must not depend on {dependency}"
            );
        }
        if ["worker/core", "coordinator/core", "kernels", "proto"].contains(&folder) {
            for impure in IMPURE
                .iter()
                .filter(|i| !(folder == "proto" && **i == "tonic"))
            {
                assert!(
                    !dependencies.contains(*impure),
                    "{folder} must not depend on {impure}"
                );
            }
        }
    }
}

#[test]
fn unsafe_stands_only_in_the_kernels_and_the_memory_map() {
    let allowed = [
        "kernels/",
        "worker/src/model/",
        "tests/src/process.rs",
        "tests/tests/tidy.rs",
    ];
    for path in files(&[".rs"]) {
        let shown = path.display().to_string();
        if allowed.iter().any(|a| shown.starts_with(a)) {
            continue;
        }
        assert!(
            !read(&path).contains("unsafe {"),
            "{shown}: unsafe belongs in kernels/"
        );
    }
}

#[test]
fn no_stubs_are_left() {
    let words = [
        concat!("todo", "!("),
        concat!("unimplemented", "!("),
        concat!("FIX", "ME"),
        concat!("XX", "X "),
    ];
    for path in files(&[".rs", ".toml", ".md", ".proto"]) {
        let text = read(&path);
        for word in words {
            assert!(!text.contains(word), "{}: `{word}`", path.display());
        }
    }
}

#[test]
fn links_between_documents_lead_somewhere() {
    for path in files(&[".md"]) {
        let text = read(&path);
        let folder = path.parent().expect("a file has a folder").to_owned();
        for target in text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
        {
            let file = target.split('#').next().unwrap_or_default();
            if file.is_empty() || target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            assert!(
                root().join(&folder).join(file).exists(),
                "{}: the link to {target} leads nowhere",
                path.display()
            );
        }
    }
}

/// Words in backticks that look like names of tests.
fn named_tests(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split('`').skip(1).step_by(2);
    words.filter(|word| word.contains('_') && word.chars().all(|c| c == '_' || c.is_alphanumeric()))
}

/// The tests that ARCHITECTURE.md names, law by law.
fn held_by(map: &str) -> Vec<Vec<&str>> {
    let lines = map.split("*Held by*").skip(1);
    lines
        .map(|line| named_tests(line.split(".\n").next().unwrap_or_default()).collect())
        .collect()
}

#[test]
fn the_tests_that_the_laws_name_exist() {
    let (map, table) = (
        read(Path::new("docs/ARCHITECTURE.md")),
        read(Path::new("docs/LAWS.md")),
    );
    let code: String = files(&[".rs"]).iter().map(|path| read(path)).collect();
    let laws = held_by(&map);
    assert_eq!(laws.len(), 12, "every law names its tests");
    let rows = table.lines().filter(|line| line.starts_with("| "));
    let rows = rows.filter_map(|line| line.trim_end_matches(" |").rsplit_once(" | "));
    for name in laws
        .into_iter()
        .flatten()
        .chain(rows.flat_map(|(_, cell)| named_tests(cell)))
    {
        assert!(
            code.contains(&format!("fn {name}(")),
            "docs name a test `{name}`, which does not exist"
        );
    }
}

#[test]
fn every_piece_of_a_law_can_be_taken_out() {
    let map = read(Path::new("docs/ARCHITECTURE.md"));
    let laws = held_by(&map);
    let patches = laws::patches(&root()).expect("patches");
    for patch in &patches {
        patch
            .applied(&root())
            .unwrap_or_else(|stale| panic!("{stale}"));
        let named = &laws[patch.law as usize - 1];
        for name in patch.test_names() {
            assert!(
                named.contains(&name),
                "law {} of docs/ARCHITECTURE.md does not name `{name}`, which tests/laws/{} \
                 says holds it",
                patch.law,
                patch.file
            );
        }
    }
    for law in 1..=laws::LAWS {
        assert!(
            patches.iter().any(|p| p.law == law),
            "nothing takes law {law} out"
        );
    }
}

#[test]
fn every_proto_field_number_is_used_once() {
    for path in files(&[".proto"]) {
        let mut scopes: Vec<BTreeSet<u32>> = Vec::new();
        let mut oneofs = 0;
        for (number, line) in read(&path).lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default().trim();
            if code.starts_with("oneof ") {
                oneofs += 1;
            } else if code.ends_with('{') {
                scopes.push(BTreeSet::new());
            } else if code == "}" {
                if oneofs > 0 {
                    oneofs -= 1;
                } else {
                    scopes.pop();
                }
            } else if let Some((_, value)) = code.rsplit_once(" = ")
                && let Ok(value) = value.trim_end_matches(';').parse::<u32>()
                && let Some(scope) = scopes.last_mut()
            {
                assert!(
                    scope.insert(value),
                    "{}:{}: number {value} is used twice",
                    path.display(),
                    number + 1
                );
            }
        }
    }
}
