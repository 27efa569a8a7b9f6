//! CSV (RFC 4180): every line is an event, its cells are the fields that the first line or the stream names.
//!
//! A cell is read as the type of its column. What has no column yet is read as a boolean, an integer or a number
//! if it looks like one, and as text otherwise. An empty cell is no value.

use ::csv::{ByteRecord, ReaderBuilder};

use iot_schemas::catalog::CsvDef;

use super::column::Kind;
use super::fields::{Fields, MAX_COLUMNS, Target};
use super::staging::{Failed, Scalar, Staging};

/// Collects the rows of `payload` in `staging`, or says why it is no good.
pub(super) fn decode(
    payload: &[u8],
    def: &CsvDef,
    fields: &mut Fields,
    staging: &mut Staging,
) -> Result<(), String> {
    if payload.is_empty() {
        return Err("the payload is empty".into());
    }
    let delimiter = u8::try_from(def.delimiter).unwrap_or(b',');
    if let Some(line) = open_quotation(payload, delimiter) {
        return Err(format!("line {line}: the quotation that begins there does not end"));
    }
    let mut reader =
        ReaderBuilder::new().has_headers(false).flexible(true).delimiter(delimiter).from_reader(payload);
    let mut record = ByteRecord::new();
    let names = if def.columns.is_empty() {
        reader.read_byte_record(&mut record).map_err(|e| format!("not usable as CSV: {e}"))?;
        header(&record)?
    } else {
        def.columns.clone()
    };
    // A name may be long and the rows many.
    let targets: Vec<Target> =
        names.iter().enumerate().map(|(position, name)| fields.resolve(name, position)).collect();
    while reader.read_byte_record(&mut record).map_err(|e| format!("not usable as CSV: {e}"))? {
        let line = record.position().map_or(0, ::csv::Position::line);
        if record.len() != names.len() {
            let (found, expected) = (record.len(), names.len());
            return Err(format!("line {line}: there are {found} cells for {expected} columns"));
        }
        row(names.iter().zip(&targets), &record, fields, staging).map_err(|trouble| {
            let why = match trouble {
                Trouble::Malformed(why) => why,
                Trouble::Failed => staging.failure.take().unwrap_or_default(),
            };
            format!("line {line}: {why}")
        })?;
    }
    Ok(())
}

/// The line in which a quoted cell begins that goes on to the end of the payload: it would swallow what follows.
fn open_quotation(payload: &[u8], delimiter: u8) -> Option<usize> {
    let (mut may_open, mut is_open, mut line, mut begun) = (true, false, 1, 1);
    for byte in payload {
        let turns = *byte == b'"' && (is_open || may_open);
        if turns {
            begun = if is_open { begun } else { line };
            is_open = !is_open;
        }
        // A doubled quotation mark closes and opens again.
        may_open = !is_open && (turns || *byte == delimiter || matches!(byte, b'\n' | b'\r'));
        line += usize::from(*byte == b'\n');
    }
    is_open.then_some(begun)
}

/// Why a line is no good.
enum Trouble {
    Malformed(String),
    /// The reason is in the staging area.
    Failed,
}

impl From<Failed> for Trouble {
    fn from(Failed: Failed) -> Self {
        Self::Failed
    }
}

fn header(record: &ByteRecord) -> Result<Vec<String>, String> {
    if record.len() > MAX_COLUMNS {
        let count = record.len();
        return Err(format!("the first line names {count} columns; a stream can have {MAX_COLUMNS}"));
    }
    let name = |cell| std::str::from_utf8(cell).map(|name| name.trim().to_owned());
    let names: Result<Vec<String>, _> = record.iter().map(name).collect();
    names.map_err(|_| "the first line is not UTF-8".to_owned())
}

fn row<'n>(
    columns: impl Iterator<Item = (&'n String, &'n Target)>,
    record: &ByteRecord,
    fields: &mut Fields,
    staging: &mut Staging,
) -> Result<(), Trouble> {
    staging.begin_row();
    for ((name, target), cell) in columns.zip(record) {
        let Ok(text) = std::str::from_utf8(cell) else {
            return Err(Trouble::Malformed(format!("the cell of `{}` is not UTF-8", super::shorten(name))));
        };
        if text.is_empty() {
            continue;
        }
        if *target != Target::Skip {
            let scalar = scalar(text, staging.kind_of(fields, *target, name));
            staging.take(fields, *target, name, scalar)?;
        }
    }
    Ok(staging.end_row(fields)?)
}

/// A cell as a value of `kind`. What is none is text, which the column then refuses.
fn scalar(cell: &str, kind: Option<Kind>) -> Scalar<'_> {
    let word = cell.trim();
    let boolean = || match word {
        _ if word.eq_ignore_ascii_case("true") => Some(Scalar::Boolean(true)),
        _ if word.eq_ignore_ascii_case("false") => Some(Scalar::Boolean(false)),
        _ => None,
    };
    let read = match kind {
        Some(Kind::Text) => None,
        Some(Kind::Boolean) => boolean(),
        Some(Kind::Double | Kind::Bigint | Kind::Timestamp) => number(word),
        // A number that begins with a zero is more likely a label than a quantity.
        None if is_label(word) => None,
        // So is one that no column of integers could hold.
        None => boolean().or_else(|| number(word).filter(|number| !matches!(number, Scalar::Huge(_)))),
    };
    read.unwrap_or(Scalar::Text(cell))
}

fn number(word: &str) -> Option<Scalar<'static>> {
    // Rust would take words like `inf` too.
    if !word.ends_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    if let Ok(value) = word.parse() {
        return Some(Scalar::Integer(value));
    }
    if let Ok(value) = word.parse() {
        return Some(Scalar::Unsigned(value));
    }
    let value = word.parse().ok().filter(|value: &f64| value.is_finite())?;
    let is_integer = word.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'+' | b'-'));
    Some(if is_integer { Scalar::Huge(value) } else { Scalar::Float(value) })
}

fn is_label(word: &str) -> bool {
    let digits = word.strip_prefix('-').unwrap_or(word);
    digits.len() > 1 && digits.starts_with('0') && digits.bytes().all(|byte| byte.is_ascii_digit())
}
