//! How a field, a property or a sensor is called as a column.
//!
//! Letters of any script and the digits 0 to 9 stay as they are, so that `温度` and `Druck_ä` are columns that people
//! recognise, and no two of them become one. Everything else becomes `_`.

/// What stands before a name that does not begin with a letter: columns that begin with `_` are the system's, and
/// SQL takes what begins with a digit for a number.
const PREFIX: char = 'x';

/// The name of the column for a field, a property or a sensor that is spelled `name`.
///
/// It is a column name unless `name` has neither a letter nor a digit.
pub fn column_name(name: &str) -> String {
    let needs_prefix = !name.starts_with(char::is_alphabetic) && name.contains(is_word);
    let mut column = String::with_capacity(name.len() + 1);
    column.extend(needs_prefix.then_some(PREFIX));
    column.extend(name.chars().map(|c| if is_word(c) { c } else { '_' }));
    column
}

/// Whether `name` can be a column: a letter or `_`, then letters, digits and `_`.
pub fn is_column_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_alphabetic() || c == '_') && name.chars().all(|c| is_word(c) || c == '_')
}

/// What SQL takes for part of a name without quotation marks, but for `_`.
fn is_word(c: char) -> bool {
    c.is_alphabetic() || c.is_ascii_digit()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_with_a_letter_or_a_digit_is_a_column() {
        let names = [
            ("temperature", "temperature"),
            ("Inputs/Temp", "Inputs_Temp"),
            ("fw-version", "fw_version"),
            ("温度", "温度"),
            ("Druck ä", "Druck_ä"),
            ("CO₂", "CO_"),
            ("5700", "x5700"),
            ("/3303/0/5700", "x_3303_0_5700"),
            ("90_percentile", "x90_percentile"),
            ("_id", "x_id"),
            ("@timestamp", "x_timestamp"),
        ];
        for (name, expect) in names {
            assert_eq!(column_name(name), expect);
            assert!(is_column_name(expect), "{expect}");
        }
        for name in ["", "-", "__", "°"] {
            assert!(!column_name(name).contains(char::is_alphanumeric), "{name}");
        }
        for name in ["", "9", "a-b", "a b", "²"] {
            assert!(!is_column_name(name), "{name}");
        }
    }
}
