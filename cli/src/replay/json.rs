//! JSON objects taken apart without touching their values, so that every digit stays as it was.

use anyhow::{Result, anyhow};
use serde::de::IgnoredAny;

use super::row::Value;

/// The fields of a JSON object in their order.
pub(super) fn fields(text: &str) -> Result<Vec<(String, Value)>> {
    let text = text.trim();
    serde_json::from_str::<IgnoredAny>(text)?;
    if !text.starts_with('{') {
        return Err(anyhow!("`{}` is no JSON object", start(text)));
    }
    let mut scanner = Scanner { rest: &text[1..] };
    let mut fields = Vec::new();
    loop {
        scanner.skip_space_and(',');
        if scanner.rest.starts_with('}') {
            return Ok(fields);
        }
        let name: String = serde_json::from_str(scanner.take_value()?)?;
        scanner.skip_space_and(':');
        fields.push((name, value(scanner.take_value()?)?));
    }
}

/// Whether `text` is a number as JSON writes it.
pub(super) fn is_number(text: &str) -> bool {
    let starts_like_one = text.starts_with(|c: char| c == '-' || c.is_ascii_digit());
    starts_like_one && serde_json::from_str::<IgnoredAny>(text).is_ok()
}

fn value(text: &str) -> Result<Value> {
    Ok(match text.as_bytes().first() {
        Some(b'"') => Value::Text(serde_json::from_str(text)?),
        Some(b'n') => Value::Absent,
        _ => Value::Literal(text.to_owned()),
    })
}

fn start(text: &str) -> String {
    text.chars().take(40).collect()
}

/// Walks through text that is known to be JSON.
struct Scanner<'t> {
    rest: &'t str,
}

impl<'t> Scanner<'t> {
    fn skip_space_and(&mut self, separator: char) {
        self.rest = self.rest.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == separator);
    }

    /// Cuts off the value at the front: it ends at a `,`, `:`, `}` or `]` outside of strings and brackets.
    fn take_value(&mut self) -> Result<&'t str> {
        let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
        for (at, byte) in self.rest.bytes().enumerate() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if in_string => escaped = true,
                b'"' => in_string = !in_string,
                _ if in_string => {}
                b'{' | b'[' => depth += 1,
                b',' | b':' | b'}' | b']' if depth == 0 => {
                    let (value, rest) = self.rest.split_at(at);
                    self.rest = rest;
                    return Ok(value.trim_end());
                }
                b'}' | b']' => depth -= 1,
                _ => {}
            }
        }
        Err(anyhow!("the JSON object has no end"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_taken_as_they_stand() {
        let text = r#" { "a" : 74.93588199999998 ,"b\"x":"y, \"z\" }", "c": {"d":[1, {"e":"}"}]}, "n":null,"t":true } "#;
        let expect = [
            ("a", Value::Literal("74.93588199999998".into())),
            ("b\"x", Value::Text("y, \"z\" }".into())),
            ("c", Value::Literal(r#"{"d":[1, {"e":"}"}]}"#.into())),
            ("n", Value::Absent),
            ("t", Value::Literal("true".into())),
        ];
        let fields = fields(text).expect("an object");
        assert_eq!(fields, expect.map(|(name, value)| (name.to_owned(), value)));
        assert!(super::fields("{}").expect("an object").is_empty());
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for bad in ["", "[1]", "{\"a\":}", "{\"a\":1", "7"] {
            assert!(fields(bad).is_err(), "{bad}");
        }
    }
}
