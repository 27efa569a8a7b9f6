//! A JSON value as people like to read it: one `key: value` per line, nested values indented.

use serde_json::Value;

/// The value as lines of text, each ending in a newline.
pub fn tree(value: &Value) -> String {
    let mut text = String::new();
    match value {
        Value::Object(_) | Value::Array(_) => write_children(&mut text, value, 0),
        scalar => text.push_str(&format!("{}\n", plain(scalar))),
    }
    text
}

/// A scalar without quotes, NULL as nothing; anything nested as JSON.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn write_children(text: &mut String, value: &Value, depth: usize) {
    match value {
        Value::Object(fields) => {
            for (key, child) in fields {
                write_child(text, &format!("{key}:"), child, depth);
            }
        }
        Value::Array(items) => {
            for item in items {
                write_child(text, "-", item, depth);
            }
        }
        _ => {}
    }
}

fn write_child(text: &mut String, label: &str, child: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    match child {
        Value::Object(fields) if !fields.is_empty() => {
            text.push_str(&format!("{indent}{label}\n"));
            write_children(text, child, depth + 1);
        }
        Value::Array(items) if items.iter().any(|item| item.is_object() || item.is_array()) => {
            text.push_str(&format!("{indent}{label}\n"));
            write_children(text, child, depth + 1);
        }
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(plain).collect();
            text.push_str(&format!("{indent}{label} {}\n", items.join(", ")));
        }
        Value::String(lines) if lines.trim_end().contains('\n') => {
            text.push_str(&format!("{indent}{label}\n"));
            for line in lines.trim_end().lines() {
                text.push_str(&format!("{indent}  {line}\n"));
            }
        }
        Value::Object(_) | Value::Null => text.push_str(&format!("{indent}{label} -\n")),
        scalar => text.push_str(&format!("{indent}{label} {}\n", plain(scalar))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nested_values_are_indented_and_long_texts_keep_their_lines() {
        let value = json!({
            "name": "climate", "sql": "SELECT 1\nFROM x\n", "batch": {"every": "5m"}, "tags": ["a", "b"],
            "runs": [{"n": 1}], "none": null
        });
        let expect = "batch:\n  every: 5m\nname: climate\nnone: -\nruns:\n  -\n    n: 1\nsql:\n  SELECT 1\n  FROM x\ntags: a, b\n";
        assert_eq!(tree(&value), expect);
    }
}
