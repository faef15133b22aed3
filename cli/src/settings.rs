//! Settings of a hosted part: a TOML file, with flags laid over it. The part
//! itself knows its keys and checks them.
use std::{fs, path::Path};

use clap::Args;
use toml::{Table, Value};

use crate::error::CliError;

/// Any setting by its name.
#[derive(Debug, Clone, Default, Args)]
pub struct SetArgs {
    /// Any other setting of the file, e.g. --set snapshot_every=4096 or --set tls.server_name=a; repeat for more
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

/// What the flags say, in the order in which they win.
#[derive(Debug, Default)]
pub struct Overrides(Table);

impl Overrides {
    /// Sets `key`, if the flag was given; `table.key` is one of a table.
    pub fn set(&mut self, key: &str, value: Option<impl Into<Value>>) -> &mut Self {
        if let Some(value) = value {
            self.0.insert(key.to_owned(), value.into());
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
            self.0.entry(key.clone()).or_insert_with(|| value.clone());
        }
        self
    }

    /// The file's text with these laid over it. Without any the text is
    /// untouched, so that errors name its lines.
    pub fn over(self, file: Option<&Path>) -> Result<String, CliError> {
        let text = match file {
            Some(path) => fs::read_to_string(path)
                .map_err(|source| CliError::usage(format!("{}: {source}", path.display())))?,
            None => String::new(),
        };
        if self.0.is_empty() {
            return Ok(text);
        }
        let shown = file.map_or_else(String::new, |path| format!("{}: ", path.display()));
        let mut table: Table = text
            .parse()
            .map_err(|error| CliError::usage(format!("{shown}{error}")))?;
        for (key, value) in self.0 {
            put(&mut table, key, value);
        }
        toml::to_string(&table).map_err(|error| CliError::usage(format!("{shown}{error}")))
    }
}

/// Lays one over the file's; of a table, one key.
fn put(table: &mut Table, key: String, value: Value) {
    let Some((name, key)) = key.split_once('.') else {
        table.insert(key, value);
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

    #[test]
    fn flags_win_over_free_settings_and_both_over_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(
            file.path(),
            "a = 1\nb = 2\nc = 3\n[[models]]\npath = \"x\"\n",
        )
        .unwrap();
        let mut overrides = Overrides::default();
        let set = SetArgs {
            set: vec![assignment("a=10").unwrap(), assignment("b=20").unwrap()],
        };
        overrides
            .set("a", Some(100))
            .set("c", None::<i64>)
            .add(&set);
        let table: Table = overrides.over(Some(file.path())).unwrap().parse().unwrap();
        assert_eq!(
            (&table["a"], &table["b"], &table["c"]),
            (&100.into(), &20.into(), &3.into())
        );
        assert!(table["models"].is_array());
    }

    #[test]
    fn a_key_of_a_table_leaves_the_others_of_the_table() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "[t]\na = 1\nb = 2\n").unwrap();
        let mut overrides = Overrides::default();
        let set = SetArgs {
            set: vec![assignment("t.b=20").unwrap(), assignment("t.c=30").unwrap()],
        };
        overrides.set("t.c", Some(300)).add(&set);
        let table: Table = overrides.over(Some(file.path())).unwrap().parse().unwrap();
        let value = |key: &str| table["t"][key].as_integer();
        assert_eq!(
            (value("a"), value("b"), value("c")),
            (Some(1), Some(20), Some(300))
        );
    }

    #[test]
    fn a_file_without_flags_keeps_its_lines() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "# comment\n\nnonsense here").unwrap();
        assert_eq!(
            Overrides::default().over(Some(file.path())).unwrap(),
            "# comment\n\nnonsense here"
        );
        let mut overrides = Overrides::default();
        overrides.set("a", Some(1));
        let error = overrides.over(Some(file.path())).unwrap_err().to_string();
        assert!(
            error.contains(&file.path().display().to_string()),
            "{error}"
        );
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
