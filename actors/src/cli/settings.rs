//! `outrider.toml`: what it may say, and how its values come under the command line's.
//!
//! A value of the file becomes the default of the flag with its name, so that flag, environment, file and built-in default
//! are one order of precedence and one set of checks.
//!
//! *Invariant:* a key that no flag has is an error with its line, never ignored.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{Arg, Command};
use toml::de::{DeTable, DeValue};

/// Where the file is looked for if nobody names one; the first that is there.
const PLACES: [&str; 2] = ["outrider.toml", "/etc/outrider/outrider.toml"];

/// The tables of the file and their keys. A key is its flag's name with `_` for `-`.
pub(super) const TABLES: &[(&str, &[&str])] = &[
    ("models", &["target", "draft", "draft_weights"]),
    (
        "decoding",
        &[
            "plan",
            "watch",
            "planner",
            "guard",
            "calibration",
            "recalibrate",
            "mode",
            "draft_tokens",
        ],
    ),
    (
        "limits",
        &["parallel", "queue", "queue_tokens", "prefix_cache", "context", "cache", "deadline_s"],
    ),
    (
        "server",
        &[
            "host",
            "port",
            "open",
            "api_key",
            "api_key_file",
            "admin_key",
            "admin_key_file",
            "cors_origin",
            "body_bytes_max",
            "head_bytes_max",
            "connections",
            "drain_s",
        ],
    ),
    ("log", &["log", "log_format"]),
];

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file says something that it may not say.
    #[error("{}:{line}: {problem}", file.display())]
    Wrong {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong there, and what would be right.
        problem: String,
    },
}

/// A file that was read.
#[derive(Clone, Debug, Default)]
pub(super) struct Settings {
    /// Where it lies; `None` if there is none.
    pub(super) file: Option<PathBuf>,
    /// Its values, by flag; each with its line.
    values: BTreeMap<String, (Vec<String>, usize)>,
}

impl Settings {
    /// Reads the file that is named, or the one at its usual place, or none.
    pub(super) fn find(named: Option<&Path>) -> Result<Self, SettingsError> {
        let usual = || PLACES.iter().map(PathBuf::from).find(|place| place.is_file());
        match named.map(Path::to_owned).or_else(usual) {
            None => Ok(Self::default()),
            Some(file) => {
                let text = std::fs::read_to_string(&file);
                let text = text
                    .map_err(|source| SettingsError::Unreadable { file: file.clone(), source })?;
                Self::parse(file, &text)
            }
        }
    }

    /// Reads a file's text.
    pub(super) fn parse(file: PathBuf, text: &str) -> Result<Self, SettingsError> {
        let wrong = |at: usize, problem: String| {
            let line = 1 + text.bytes().take(at).filter(|&b| b == b'\n').count();
            SettingsError::Wrong { file: file.clone(), line, problem }
        };
        let tables = DeTable::parse(text)
            .map_err(|e| wrong(e.span().map_or(0, |s| s.start), e.message().to_owned()))?;
        let mut values = BTreeMap::new();
        for (name, table) in tables.get_ref().iter() {
            let at = name.span().start;
            let name = name.get_ref().as_ref();
            let Some((_, keys)) = TABLES.iter().find(|(known, _)| *known == name) else {
                let known = TABLES.iter().map(|(name, _)| format!("[{name}]"));
                let known = known.collect::<Vec<_>>().join(", ");
                return Err(wrong(at, format!("`{name}` is none of the tables {known}")));
            };
            let DeValue::Table(table) = table.get_ref() else {
                return Err(wrong(at, format!("`{name}` must be a table: write [{name}]")));
            };
            for (key, value) in table.iter() {
                let at = key.span().start;
                let key = key.get_ref().as_ref();
                if !keys.contains(&key) {
                    let keys = keys.join(", ");
                    return Err(wrong(at, format!("[{name}] has no `{key}`, only {keys}")));
                }
                let words =
                    words(value.get_ref()).map_err(|why| wrong(at, format!("`{key}` {why}")))?;
                let line = 1 + text.bytes().take(at).filter(|&b| b == b'\n').count();
                values.insert(key.to_owned(), (words, line));
            }
        }
        Ok(Self { file: Some(file), values })
    }

    /// Whether the file sets a flag.
    pub(super) fn sets(&self, flag: &str) -> bool {
        self.values.contains_key(flag)
    }

    /// The command line with the file's values as its defaults, so that `--help` shows them too.
    pub(super) fn under(&self, command: Command) -> Command {
        let command = command.mut_args(|arg| self.default_of(arg));
        let names: Vec<String> =
            command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
        names
            .into_iter()
            .fold(command, |command, name| command.mut_subcommand(name, |sub| self.under(sub)))
    }

    fn default_of(&self, arg: Arg) -> Arg {
        let Some((words, _)) = self.values.get(arg.get_id().as_str()) else { return arg };
        // clap holds defaults for the life of the program; the file is read once in it.
        let words = words.iter().map(|word| &*Box::leak(word.clone().into_boxed_str()));
        arg.default_values(words.collect::<Vec<&'static str>>())
    }

    /// Checks each value as its flag would be.
    pub(super) fn check(&self, command: &Command) -> Result<(), SettingsError> {
        for (key, (words, line)) in &self.values {
            let flag = format!("--{}", key.replace('_', "-"));
            let given = words.iter().map(|word| format!("{flag}={word}"));
            let arguments = ["outrider".to_owned(), "serve".to_owned()].into_iter().chain(given);
            if let Err(error) = command.clone().try_get_matches_from(arguments) {
                let told = error.to_string();
                let told = told.lines().next().unwrap_or_default();
                let problem = told.trim_start_matches("error: ").replace(&flag, key);
                let file = self.file.clone().unwrap_or_default();
                return Err(SettingsError::Wrong { file, line: *line, problem });
            }
        }
        Ok(())
    }
}

/// A value as the words that a flag would be given.
fn words(value: &DeValue<'_>) -> Result<Vec<String>, String> {
    let one = |value: &DeValue<'_>| match value {
        DeValue::String(text) => Ok(text.clone().into_owned()),
        DeValue::Integer(number) => Ok(number.to_string()),
        DeValue::Float(number) => Ok(number.to_string()),
        DeValue::Boolean(yes) => Ok(yes.to_string()),
        _ => Err("takes a text, a number, true, false, or a list of texts".to_owned()),
    };
    match value {
        DeValue::Array(items) => items.iter().map(|item| one(item.get_ref())).collect(),
        value => Ok(vec![one(value)?]),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::path::PathBuf;

    use proptest::prelude::{any, proptest};

    use super::Settings;

    fn error(text: &str) -> String {
        Settings::parse(PathBuf::from("outrider.toml"), text).unwrap_err().to_string()
    }

    #[test]
    fn what_is_not_known_is_refused_with_its_line() {
        let message = error("[server]\nport = 1\nprot = 2\n");
        assert!(message.starts_with("outrider.toml:3: [server] has no `prot`"), "{message}");
        assert!(error("\n[sever]\n").starts_with("outrider.toml:2: `sever`"));
        assert!(error("server = 3\n").contains("must be a table"));
        assert!(error("[server]\nport = {}\n").contains("`port` takes"));
        assert!(error("[server\n").starts_with("outrider.toml:1:"));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(\\[server\\]|port|=|\"|\\[|\\]|\n|1|é|#|\\.| ){0,40}") {
            let _ = Settings::parse(PathBuf::from("outrider.toml"), &text);
        }

        #[test]
        fn nor_do_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Settings::parse(PathBuf::from("x"), &String::from_utf8_lossy(&bytes));
        }
    }
}
