//! Settings of a hosted part: a TOML file, with flags laid over it. The part
//! itself knows its keys and checks them.
use std::{collections::BTreeSet, fs, ops::Range, path::Path};

use clap::Args;
use toml::{Table, Value};

use crate::error::CliError;

/// Any setting by its name.
#[derive(Debug, Clone, Default, Args)]
pub struct SetArgs {
    /// Any other setting of the file, e.g. --set traces.sampling_ratio=0.1; repeat for more
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = assignment)]
    pub set: Vec<(String, Value)>,
}

/// `key=value`, the value as TOML; what is no TOML is taken as text.
fn assignment(text: &str) -> Result<(String, Value), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| format!("`{text}` is not KEY=VALUE"))?;
    let parsed = format!("v = {value}")
        .parse::<Table>()
        .ok()
        .and_then(|mut table| table.remove("v"));
    Ok((
        key.trim().to_owned(),
        parsed.unwrap_or_else(|| Value::String(value.to_owned())),
    ))
}

/// What is wrong with a text of settings, as the part that reads it says.
#[derive(Debug)]
pub enum Wrong {
    /// It does not parse, or a value is of another type.
    Shape {
        /// Which bytes of the text.
        at: Option<Range<usize>>,
        /// The parser's words.
        why: String,
    },
    /// A key that is not known; `why` names it.
    Unknown {
        /// The key, with the table that it stands in.
        key: String,
        /// What the part says.
        why: String,
    },
    /// A value that cannot be used, or is missing.
    Value {
        /// The key, with the table that it stands in.
        key: String,
        /// What the part says of it.
        why: String,
    },
}

/// What the flags say, in the order in which they win.
#[derive(Debug, Default)]
pub struct Overrides {
    values: Table,
    /// Those that were given by --set.
    free: BTreeSet<String>,
}

impl Overrides {
    /// Sets `key`, if the flag was given; `table.key` is one of a table.
    pub fn set(&mut self, key: &str, value: Option<impl Into<Value>>) -> &mut Self {
        if let Some(value) = value {
            self.values.insert(key.to_owned(), value.into());
        }
        self
    }

    /// Sets `key` to a path. The parts read TOML, which is UTF-8.
    pub fn set_path(&mut self, key: &str, path: Option<&Path>) -> &mut Self {
        self.set(key, path.map(|path| path.display().to_string()))
    }

    /// Sets `key` to a list, if it has items.
    pub fn set_list(&mut self, key: &str, items: &[String]) -> &mut Self {
        self.set(
            key,
            (!items.is_empty())
                .then(|| items.iter().cloned().map(Value::String).collect::<Vec<_>>()),
        )
    }

    /// Takes the free-form settings; a named flag wins over them.
    pub fn add(&mut self, args: &SetArgs) -> &mut Self {
        for (key, value) in &args.set {
            if !self.values.contains_key(key) {
                self.values.insert(key.clone(), value.clone());
                self.free.insert(key.clone());
            }
        }
        self
    }

    /// What `parse` makes of the file's text with these laid over it.
    ///
    /// # Errors
    /// A usage error that names where the wrong one was given: the file and its line, or the option.
    pub fn read<C>(
        self,
        file: Option<&Path>,
        parse: impl Fn(&str) -> Result<C, Wrong>,
    ) -> Result<C, CliError> {
        let text = match file {
            Some(path) => fs::read_to_string(path).map_err(|source| {
                CliError::usage(format!("--config {}: {source}", path.display()))
            })?,
            None => String::new(),
        };
        // By itself first, and each option by itself: together they have no lines to name.
        if let Err(wrong @ (Wrong::Shape { .. } | Wrong::Unknown { .. })) = parse(&text) {
            return Err(in_file(file, &text, &wrong));
        }
        for (key, value) in &self.values {
            let mut alone = Table::new();
            put(&mut alone, key, value.clone());
            if let Err(Wrong::Shape { why, .. } | Wrong::Unknown { why, .. }) =
                parse(&alone.to_string())
            {
                return Err(CliError::usage(format!(
                    "{}: {}",
                    self.option(key),
                    plain(&why)
                )));
            }
        }
        let mut table: Table = text.parse().unwrap_or_default();
        for (key, value) in &self.values {
            put(&mut table, key, value.clone());
        }
        parse(&table.to_string()).map_err(|wrong| match &wrong {
            Wrong::Value { key, why } if self.values.contains_key(key) => {
                CliError::usage(format!("{}: {}", self.option(key), why))
            }
            _ => in_file(file, &text, &wrong),
        })
    }

    /// The option by which `key` was given.
    fn option(&self, key: &str) -> String {
        match key {
            free if self.free.contains(free) => format!("--set {free}"),
            "seeds" => "--seed".to_owned(),
            "coordinators" => "--coordinator".to_owned(),
            "models" => "--model".to_owned(),
            "tls.ca_file" => "--ca (or CONCLAVE_CA)".to_owned(),
            "tls.cert_file" => "--cert (or CONCLAVE_CERT)".to_owned(),
            "tls.key_file" => "--key (or CONCLAVE_KEY)".to_owned(),
            "tls.server_name" => "--server-name (or CONCLAVE_SERVER_NAME)".to_owned(),
            key => format!("--{}", key.replace('_', "-")),
        }
    }
}

/// What is wrong in the file, with the line if it has one.
fn in_file(file: Option<&Path>, text: &str, wrong: &Wrong) -> CliError {
    let (line, key, why) = match wrong {
        Wrong::Shape { at, why } => {
            let at = at.as_ref().map(|at| at.start.min(text.len()));
            let line = at.map(|at| {
                text.as_bytes()[..at]
                    .iter()
                    .filter(|b| **b == b'\n')
                    .count()
            });
            // The key alone: the value may be a secret.
            let key = line.and_then(|line| text.lines().nth(line)?.split_once('='));
            (line, key.map(|(key, _)| key.trim().to_owned()), plain(why))
        }
        Wrong::Unknown { key, why } => (line_of(text, key), None, why.clone()),
        Wrong::Value { key, why } => (line_of(text, key), Some(key.clone()), why.clone()),
    };
    let place = match (file, line) {
        (Some(path), Some(line)) => format!("{}, line {}: ", path.display(), line + 1),
        (Some(path), None) => format!("{}: ", path.display()),
        (None, _) => String::new(),
    };
    let key = key.map_or_else(String::new, |key| format!("`{key}`: "));
    CliError::usage(format!("{place}{key}{why}"))
}

/// The line, from 0, in which `key` is set; `table.key` is one of a table.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let mut within = String::new();
    let mut found = None;
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        let name = if let Some(table) = line.strip_prefix('[') {
            within = table.trim_matches(['[', ']', ' ']).to_owned();
            within.clone()
        } else if let Some((name, _)) = line.split_once('=') {
            match within.as_str() {
                "" => name.trim().to_owned(),
                table => format!("{table}.{}", name.trim()),
            }
        } else {
            continue;
        };
        if name == key {
            return Some(number);
        }
        // Its table, if it stands in no line of its own.
        if found.is_none() && key.split_once('.').is_some_and(|(table, _)| table == name) {
            found = Some(number);
        }
    }
    found
}

/// What serde says of a value, in words of the file.
fn plain(why: &str) -> String {
    let why = why.trim().replace('\n', "; ");
    let wrong = ["invalid type: ", "invalid value: "];
    let wrong = wrong.iter().find_map(|prefix| why.strip_prefix(prefix));
    if let Some((found, wanted)) = wrong.and_then(|rest| rest.split_once(", expected ")) {
        return format!(
            "{} is needed, not {}",
            wanted_in_words(wanted),
            found_in_words(found)
        );
    }
    let variant = why.strip_prefix("unknown variant ");
    if let Some((found, known)) = variant.and_then(|rest| rest.split_once(", expected ")) {
        return format!(
            "{} is needed, not {found}",
            known.trim_start_matches("one of ")
        );
    }
    if why.contains("socket address") {
        return "IP:PORT is needed, e.g. 127.0.0.1:7410".to_owned();
    }
    why
}

fn wanted_in_words(wanted: &str) -> &str {
    match wanted {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, 0 or more,",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "a string" | "path string" => "a text in quotes",
        "socket address" => "IP:PORT, e.g. 127.0.0.1:7410,",
        "a sequence" => "a list, [\"…\", \"…\"],",
        table if table.starts_with("struct ") => "a table, [NAME] with keys below it,",
        other => other,
    }
}

fn found_in_words(found: &str) -> String {
    let value = |prefix: &str| {
        found
            .strip_prefix(prefix)
            .map(|value| value.trim_matches('`'))
    };
    match found {
        "map" => "a table".to_owned(),
        "sequence" => "a list".to_owned(),
        _ => match value("string ") {
            Some(text) => format!("the text {text}"),
            None => ["integer ", "boolean ", "floating point "]
                .iter()
                .find_map(|prefix| value(prefix))
                .unwrap_or(found)
                .to_owned(),
        },
    }
}

/// Lays one over the file's; of a table, one key.
fn put(table: &mut Table, key: &str, value: Value) {
    let Some((name, key)) = key.split_once('.') else {
        table.insert(key.to_owned(), value);
        return;
    };
    let mut within = match table.remove(name) {
        Some(Value::Table(within)) => within,
        _ => Table::new(),
    };
    within.insert(key.to_owned(), value);
    table.insert(name.to_owned(), within.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The merged table.
    fn merged(overrides: Overrides, file: &str) -> Table {
        let kept = tempfile::NamedTempFile::new().unwrap();
        fs::write(kept.path(), file).unwrap();
        let parse = |text: &str| Ok(text.parse::<Table>().unwrap());
        overrides.read(Some(kept.path()), parse).unwrap()
    }

    fn free(set: &[&str]) -> SetArgs {
        let set = set.iter().map(|text| assignment(text).unwrap()).collect();
        SetArgs { set }
    }

    #[test]
    fn flags_win_over_free_settings_and_both_over_the_file() {
        let mut overrides = Overrides::default();
        overrides
            .set("a", Some(100))
            .set("c", None::<i64>)
            .add(&free(&["a=10", "b=20"]));
        let table = merged(overrides, "a = 1\nb = 2\nc = 3\n[[models]]\npath = \"x\"\n");
        assert_eq!(
            (&table["a"], &table["b"], &table["c"]),
            (&100.into(), &20.into(), &3.into())
        );
        assert!(table["models"].is_array());
    }

    #[test]
    fn a_key_of_a_table_leaves_the_others_of_the_table() {
        let mut overrides = Overrides::default();
        overrides
            .set("t.c", Some(300))
            .add(&free(&["t.b=20", "t.c=30"]));
        let table = merged(overrides, "[t]\na = 1\nb = 2\n");
        let value = |key: &str| table["t"][key].as_integer();
        assert_eq!(
            (value("a"), value("b"), value("c")),
            (Some(1), Some(20), Some(300))
        );
    }

    #[test]
    fn a_key_is_found_where_it_stands() {
        let text = "a = 1\n\n[t]\na = 2\nb = 3\n[[models]]\nname = 'x'\n";
        for (key, line) in [
            ("a", Some(0)),
            ("t", Some(2)),
            ("t.a", Some(3)),
            ("t.b", Some(4)),
            ("t.c", Some(2)),
            ("models.name", Some(6)),
            ("c", None),
        ] {
            assert_eq!(line_of(text, key), line, "{key}");
        }
    }

    #[test]
    fn a_parsers_words_become_a_persons() {
        for (why, words) in [
            (
                "invalid type: string \"abc\", expected u64",
                "a whole number, 0 or more, is needed, not the text \"abc\"",
            ),
            (
                "invalid value: integer `-1`, expected u64",
                "a whole number, 0 or more, is needed, not -1",
            ),
            (
                "invalid type: integer `7400`, expected a string",
                "a text in quotes is needed, not 7400",
            ),
            (
                "invalid type: string \"yes\", expected a boolean",
                "true or false is needed, not the text \"yes\"",
            ),
            (
                "unknown variant `fast`, expected `int8` or `f32`",
                "`int8` or `f32` is needed, not `fast`",
            ),
            (
                "key with no value, expected `=`",
                "key with no value, expected `=`",
            ),
        ] {
            assert_eq!(plain(why), words);
        }
    }

    #[test]
    fn values_are_toml_or_text() {
        assert_eq!(assignment("n=5").unwrap().1, Value::Integer(5));
        assert_eq!(assignment("b=true").unwrap().1, Value::Boolean(true));
        assert_eq!(
            assignment("l=[\"a\"]").unwrap().1,
            Value::Array(vec!["a".into()])
        );
        assert_eq!(
            assignment("s=127.0.0.1:0").unwrap().1,
            Value::String("127.0.0.1:0".into())
        );
        assert!(assignment("novalue").is_err());
    }
}
