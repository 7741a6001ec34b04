//! JSON for telemetry and console, written into memory that is there already: nothing is allocated.

use core::fmt::{self, Display};

use serde::{Serialize, Serializer};

/// Writes `value` to `room`. None if it does not fit. Of serde's types chars, tuple variants and errors of a `Serialize` of one's own are not for this writer: it panics.
pub fn write<'a>(value: &impl Serialize, room: &'a mut [u8]) -> Option<&'a str> {
    let length = serde_json_core::to_slice(value, room).ok()?;
    core::str::from_utf8(room.get(..length)?).ok()
}

/// For `#[serde(serialize_with)]`: the value as its [`Display`] has it.
pub fn as_text<S: Serializer>(value: &impl Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// Writes JSON without blanks, as [`write()`] makes it, in lines for a person.
pub fn indent(json: &str, out: &mut impl fmt::Write) -> fmt::Result {
    let new_line = |out: &mut dyn fmt::Write, depth: usize| write!(out, "\n{:1$}", "", 2 * depth);
    let (mut depth, mut in_text, mut escaped, mut before) = (0_usize, false, false, ' ');
    for character in json.chars() {
        let closes = !in_text && matches!(character, '}' | ']');
        if closes {
            depth = depth.saturating_sub(1);
        }
        // Nothing stands between the brackets of what is empty.
        if !in_text && (matches!(before, '{' | '[') != closes) && (closes || before != ' ') {
            new_line(out, depth)?;
        }
        out.write_char(character)?;
        if in_text {
            in_text = escaped || character != '"';
            escaped = !escaped && character == '\\';
            before = ' ';
            continue;
        }
        before = ' ';
        match character {
            '"' => in_text = true,
            '{' | '[' => {
                depth += 1;
                before = character;
            }
            ':' => out.write_char(' ')?,
            ',' => new_line(out, depth)?,
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn written(value: &impl Serialize) -> String {
        write(value, &mut [0; 4096]).unwrap().into()
    }

    fn indented(json: &str) -> String {
        let mut out = String::new();
        indent(json, &mut out).unwrap();
        out
    }

    #[test]
    fn what_does_not_fit_is_not_written() {
        assert_eq!(write(&[1, 2, 3], &mut [0; 7]), Some("[1,2,3]"));
        assert_eq!(write(&[1, 2, 3], &mut [0; 6]), None);
    }

    #[test]
    fn lines_are_indented_as_everyone_does() {
        for value in [
            json!({"a": {"b": [1, {"c": "x{,}\\\" y"}], "d": {}}, "e": [], "f": null}),
            json!([[], {}, [[1]], "", "\\"]),
            json!(7),
        ] {
            let usual = serde_json::to_string_pretty(&value).unwrap();
            assert_eq!(indented(&written(&value)), usual);
        }
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            "(?s).*".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map("(?s).*", inner, 0..5)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn whatever_is_written_reads_back(value in any_json()) {
            let mut room = vec![0; 1 << 20];
            let text = write(&value, &mut room).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Value>(text).unwrap(), &value);
            prop_assert_eq!(indented(&value.to_string()), serde_json::to_string_pretty(&value).unwrap());
        }
    }
}
