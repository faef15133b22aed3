//! What documents, charts and messages tell people to type is there to be typed.

use std::{fs, path::Path};

use clap::{Command, CommandFactory as _};

use crate::args::Cli;

/// Where commands are told to people.
const FOLDERS: [&str; 5] = ["docs", "cli/src", "coordinator/src", "worker/src", "deploy"];
const FILES: [&str; 2] = ["README.md", "CONTRIBUTING.md"];
const ENDINGS: [&str; 6] = ["md", "rs", "yaml", "yml", "txt", "service"];

fn texts() -> Vec<(String, String)> {
    fn walk(at: &Path, found: &mut Vec<(String, String)>) {
        if at.is_dir() {
            for entry in fs::read_dir(at).expect("a readable folder") {
                walk(&entry.expect("a readable entry").path(), found);
            }
        } else if let Some(ending) = at.extension().and_then(|e| e.to_str())
            && ENDINGS.contains(&ending)
        {
            let text = fs::read_to_string(at).expect("a readable file");
            found.push((at.display().to_string(), text));
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    let root = root.expect("this crate stands below the root");
    let mut found = Vec::new();
    for name in FOLDERS.iter().chain(&FILES) {
        walk(&root.join(name), &mut found);
    }
    found
}

/// Commands in a text: code between backticks, and lines of code. Texts of Rust are broken with a backslash.
fn commands(text: &str) -> Vec<String> {
    let joined = text.split("\\\n").map(str::trim_start);
    let joined = joined.collect::<Vec<_>>().concat();
    let spans = joined.split('`').skip(1).step_by(2);
    let spans = spans.filter(|span| !span.contains('\n'));
    let spans = spans.filter_map(|span| span.strip_prefix("conclave "));
    let lines = joined.lines().filter_map(|line| {
        let line = line.trim_start();
        let mut starts = ["op ", "conclave ", "ExecStart=/usr/local/bin/conclave "].iter();
        starts.find_map(|start| line.strip_prefix(start))
    });
    spans.chain(lines).map(str::to_owned).collect()
}

/// What in `line`, a command without its first word, no command takes.
fn unknown(cli: &Command, line: &str) -> Option<String> {
    // Behind a word of the shell another command begins.
    let line = line
        .split([';', '|', '&', '<', '>', '#', ')', ','])
        .next()
        .unwrap_or_default();
    let mut command = cli;
    let mut descends = true;
    for word in line.split_whitespace() {
        let word = word.trim_matches(|c: char| !c.is_alphanumeric() && c != '-');
        if let Some(flag) = word.strip_prefix("--") {
            let name = flag.split('=').next().unwrap_or_default();
            let mut known = command.get_arguments().chain(cli.get_arguments());
            let helps = ["", "help", "version"].contains(&name);
            if !helps && !known.any(|arg| arg.get_long() == Some(name)) {
                return Some(word.to_owned());
            }
        } else if descends && command.has_subcommands() {
            match command.find_subcommand(word) {
                Some(found) => command = found,
                None => return Some(word.to_owned()),
            }
        } else {
            descends = false;
        }
    }
    None
}

#[test]
fn every_command_that_people_are_told_is_there() {
    let cli = Cli::command();
    let mut seen = 0;
    let mut wrong = Vec::new();
    for (file, text) in texts() {
        for line in commands(&text) {
            seen += 1;
            let strange = unknown(&cli, &line);
            wrong.extend(strange.map(|word| format!("{file}: `{word}` in: conclave {line}")));
        }
    }
    assert!(seen > 200, "{seen} were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_is_not_there_is_seen() {
    let cli = Cli::command();
    assert_eq!(unknown(&cli, "cluster add HOST:PORT --learner"), None);
    assert_eq!(unknown(&cli, "cluster status --ca ca.crt"), None);
    assert_eq!(unknown(&cli, "cluster join a").as_deref(), Some("join"));
    assert_eq!(
        unknown(&cli, "cluster add a --voter").as_deref(),
        Some("--voter")
    );
}
