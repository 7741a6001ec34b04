//! What is wrong with a configuration file, and where.

use alloc::format;
use alloc::string::{String, ToString};
use core::fmt;

/// What is wrong with a configuration file: the line, and a message that names what would be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    line: Option<usize>,
    message: String,
}

impl ConfigError {
    /// The line at fault, counted from 1; `None` if the file as a whole is.
    pub fn line(&self) -> Option<usize> {
        self.line
    }

    /// What is wrong, without the line.
    pub fn message(&self) -> &str {
        &self.message
    }

    pub(crate) fn at_line(line: usize, message: String) -> Self {
        ConfigError {
            line: Some(line),
            message,
        }
    }

    pub(crate) fn whole_file(message: String) -> Self {
        ConfigError {
            line: None,
            message,
        }
    }

    /// Turns the parser's error into ours: its span becomes a line, its words become an engineer's.
    pub(crate) fn from_toml(text: &str, error: &toml::de::Error) -> Self {
        let span = error.span();
        let there = span.clone().and_then(|span| text.get(span));
        let there = there.unwrap_or_default().trim();
        let message = match (missing_key(error.message()), error.message()) {
            (Some(key), _) => format!("`{key}` is missing; {}", hint(key)),
            (_, "duplicate key") => format!("`{there}` is there twice; leave one of them"),
            (_, "invalid IPv4 socket address syntax") => format!(
                "{there} is not an IPv4 address and port, as \"10.77.2.1:3301\" is; names are not looked up"
            ),
            (_, "invalid IPv4 address syntax") => {
                format!("{there} is not an IPv4 address, as \"10.77.0.1\" is")
            }
            (_, other) => other.to_string().replace("unknown field", "unknown key"),
        };
        let line = span.map(|span| line_of(text, span.start));
        ConfigError { line, message }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "outpost.toml line {line}: {}", self.message),
            None => write!(f, "outpost.toml: {}", self.message),
        }
    }
}

impl core::error::Error for ConfigError {}

/// The line (from 1) on which byte `offset` lies.
pub(crate) fn line_of(text: &str, offset: usize) -> usize {
    1 + text
        .bytes()
        .take(offset)
        .filter(|&byte| byte == b'\n')
        .count()
}

fn missing_key(message: &str) -> Option<&str> {
    message.strip_prefix("missing field `")?.split('`').next()
}

/// What to write for a key that must be there.
fn hint(key: &str) -> &'static str {
    match key {
        "role" => "write role = \"branch\" or role = \"core\"",
        "private_key" => {
            "write private_key = \"…\", the base64 line that `cargo xtask keygen` prints"
        }
        "public_key" => {
            "write public_key = \"…\", the base64 line that `cargo xtask keygen` printed for the peer"
        }
        "management" => "add a section [management] with address = \"10.77.1.1/16\"",
        "address" => {
            "write address = \"10.77.1.1/16\": the box's own address and its network's prefix length"
        }
        "name" => "give the peer a name, as name = \"head-office\"",
        _ => "the section cannot do without it",
    }
}
