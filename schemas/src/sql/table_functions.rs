//! Window table functions, as the SQL standard has them and Flink's users write them:
//!
//! ```sql
//! SELECT ... FROM TABLE(HOP(TABLE t, DESCRIPTOR(ts), INTERVAL '1' MINUTE, INTERVAL '5' MINUTES)) GROUP BY ...
//! ```
//!
//! The parser does not know them, so they are replaced in the token stream: by a subquery that adds the columns
//! `window_start`, `window_end` and `window_time`. Tokens keep their place in the text.

use datafusion::common::{DataFusionError, Result};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Span, Token, TokenWithSpan, Tokenizer};

/// Replaces all window table functions, innermost last.
pub(super) fn rewrite(tokens: Vec<TokenWithSpan>) -> Result<Vec<TokenWithSpan>> {
    // Without white space, positions are easy to compare.
    let calls = tokens.iter().any(|t| word(t).is_some_and(|word| word.eq_ignore_ascii_case("descriptor")));
    if !calls {
        return Ok(tokens);
    }
    let tokens: Vec<TokenWithSpan> =
        tokens.into_iter().filter(|t| !matches!(t.token, Token::Whitespace(_))).collect();
    rewrite_all(&tokens)
}

fn rewrite_all(tokens: &[TokenWithSpan]) -> Result<Vec<TokenWithSpan>> {
    let mut out = Vec::with_capacity(tokens.len());
    let mut at = 0;
    while at < tokens.len() {
        match call_at(tokens, at)? {
            Some(call) => {
                call.write(&mut out)?;
                at = call.end;
            }
            None => {
                out.push(tokens[at].clone());
                at += 1;
            }
        }
    }
    Ok(out)
}

const FUNCTIONS: [&str; 4] = ["tumble", "hop", "cumulate", "session"];

/// A table function in the token stream.
struct Call<'a> {
    name: String,
    span: Span,
    /// The tokens of each argument, without a name (`SIZE => ...`).
    arguments: Vec<&'a [TokenWithSpan]>,
    /// The first token after it.
    end: usize,
}

/// The call that begins at `at`, either as `TABLE(HOP(...))` or as `HOP(TABLE ...)`.
fn call_at(tokens: &[TokenWithSpan], at: usize) -> Result<Option<Call<'_>>> {
    let wrapped = is_keyword(tokens.get(at), Keyword::TABLE)
        && is(tokens.get(at + 1), &Token::LParen)
        && function_at(tokens, at + 2);
    let start = if wrapped { at + 2 } else { at };
    let bare = function_at(tokens, at) && begins_table(&tokens[at + 2..]);
    if !wrapped && !bare {
        return Ok(None);
    }
    let name = word(&tokens[start]).unwrap_or_default().to_lowercase();
    let span = tokens[start].span;
    let close = closing(tokens, start + 1)
        .ok_or_else(|| error(span, &format!("{}( is not closed", name.to_uppercase())))?;
    let mut end = close + 1;
    if wrapped {
        if !is(tokens.get(end), &Token::RParen) {
            return Err(error(span, &format!("TABLE({}(...) is not closed", name.to_uppercase())));
        }
        end += 1;
    }
    let inner = &tokens[start + 2..close];
    let arguments = split_arguments(inner).into_iter().map(without_name).collect();
    Ok(Some(Call { name, span, arguments, end }))
}

impl Call<'_> {
    fn write(&self, out: &mut Vec<TokenWithSpan>) -> Result<()> {
        let lengths = if matches!(self.name.as_str(), "tumble" | "session") { 1 } else { 2 };
        let usage = self.usage();
        let wrong = |why: &str| error(self.span, &format!("{why}; write {usage}"));
        let [table, time, rest @ ..] = self.arguments.as_slice() else {
            return Err(wrong("too few arguments"));
        };
        let offset = usize::from(self.name != "session");
        if rest.len() < lengths || rest.len() > lengths + offset {
            return Err(wrong("wrong number of arguments"));
        }
        let time = match time {
            [d, open, column @ .., close]
                if word(d).is_some_and(|word| word.eq_ignore_ascii_case("descriptor"))
                    && open.token == Token::LParen
                    && close.token == Token::RParen
                    && !column.is_empty() =>
            {
                column
            }
            _ => {
                return Err(wrong(
                    "the second argument must name the time column, as DESCRIPTOR(event_time)",
                ));
            }
        };
        let (table, keys) = self.table(table).map_err(|why| wrong(&why))?;
        let call = |function: &str, out: &mut Vec<TokenWithSpan>| -> Result<()> {
            self.text(&format!("{function}("), out)?;
            out.extend_from_slice(time);
            for argument in rest {
                self.text(",", out)?;
                out.extend(rewrite_all(argument)?);
            }
            for key in &keys {
                self.text(",", out)?;
                out.extend_from_slice(key);
            }
            self.text(")", out)
        };
        self.text("(SELECT *", out)?;
        if self.name == "tumble" {
            self.text(",", out)?;
            call("tumble", out)?;
            self.text("AS window_start,", out)?;
            call("tumble_end", out)?;
            self.text("AS window_end,", out)?;
            call("tumble_end", out)?;
            self.text("- INTERVAL '1 millisecond' AS window_time", out)?;
        } else {
            for part in ["window_start", "window_end", "window_time"] {
                self.text(&format!(", {part}("), out)?;
                // A session without keys: `NULL` says that the keys are not those of a GROUP BY.
                let function = format!("{}_window", self.name);
                call(&function, out)?;
                self.text(&format!(") AS {part}"), out)?;
            }
        }
        self.text("FROM", out)?;
        out.extend(table);
        self.text(")", out)
    }

    /// The rows, and the keys of `PARTITION BY`.
    fn table(
        &self,
        tokens: &[TokenWithSpan],
    ) -> Result<(Vec<TokenWithSpan>, Vec<Vec<TokenWithSpan>>), String> {
        let rest = match tokens.split_first() {
            Some((first, rest)) if is_keyword(Some(first), Keyword::TABLE) => rest,
            _ => return Err("the first argument must be TABLE and a name".to_owned()),
        };
        let by = rest.windows(2).position(|pair| {
            is_keyword(Some(&pair[0]), Keyword::PARTITION) && is_keyword(Some(&pair[1]), Keyword::BY)
        });
        let (table, keys) = match by {
            Some(at) => {
                let keys = &rest[at + 2..];
                // PARTITION BY (a, b) and PARTITION BY a, b are the same; the latter ends at DESCRIPTOR.
                let keys = match keys {
                    [open, inner @ .., close]
                        if open.token == Token::LParen && close.token == Token::RParen =>
                    {
                        inner
                    }
                    keys => keys,
                };
                (&rest[..at], split_arguments(keys).into_iter().map(<[_]>::to_vec).collect())
            }
            None => (rest, Vec::new()),
        };
        if table.is_empty() {
            return Err("the first argument must be TABLE and a name".to_owned());
        }
        if !keys.is_empty() && self.name != "session" {
            return Err("PARTITION BY has a meaning for SESSION only".to_owned());
        }
        let mut table = rewrite_all(table).map_err(|e| e.strip_backtrace())?;
        if self.name == "session" && keys.is_empty() {
            let nothing = Token::make_keyword("NULL");
            return Ok((table, vec![vec![TokenWithSpan::new(nothing, self.span)]]));
        }
        table.shrink_to_fit();
        Ok((table, keys))
    }

    /// Adds tokens of our own, at the place of the call.
    fn text(&self, sql: &str, out: &mut Vec<TokenWithSpan>) -> Result<()> {
        let tokens =
            Tokenizer::new(&GenericDialect {}, sql).tokenize().map_err(|e| error(self.span, &e.message))?;
        let tokens = tokens.into_iter().filter(|token| !matches!(token, Token::Whitespace(_)));
        out.extend(tokens.map(|token| TokenWithSpan::new(token, self.span)));
        Ok(())
    }

    fn usage(&self) -> &'static str {
        match self.name.as_str() {
            "tumble" => "TABLE(TUMBLE(TABLE t, DESCRIPTOR(event_time), INTERVAL '5' MINUTES [, offset]))",
            "hop" => {
                "TABLE(HOP(TABLE t, DESCRIPTOR(event_time), INTERVAL '1' MINUTE, INTERVAL '5' MINUTES [, offset])), the slide before the size"
            }
            "cumulate" => {
                "TABLE(CUMULATE(TABLE t, DESCRIPTOR(event_time), INTERVAL '1' HOUR, INTERVAL '1' DAY [, offset])), the step before the size"
            }
            _ => {
                "TABLE(SESSION(TABLE t PARTITION BY device_id, DESCRIPTOR(event_time), INTERVAL '5' MINUTES))"
            }
        }
    }
}

/// Splits at commas outside of parentheses. A list of keys before `DESCRIPTOR` stays with its `PARTITION BY`.
fn split_arguments(tokens: &[TokenWithSpan]) -> Vec<&[TokenWithSpan]> {
    let (mut parts, mut depth, mut start, mut in_keys) = (Vec::new(), 0usize, 0, false);
    for (at, token) in tokens.iter().enumerate() {
        match token.token {
            Token::LParen | Token::LBracket => depth += 1,
            Token::RParen | Token::RBracket => depth = depth.saturating_sub(1),
            Token::Comma if depth == 0 => {
                let next = without_name(&tokens[at + 1..]);
                let descriptor =
                    next.first().and_then(word).is_some_and(|word| word.eq_ignore_ascii_case("descriptor"));
                if !in_keys || descriptor {
                    parts.push(&tokens[start..at]);
                    start = at + 1;
                    in_keys = false;
                }
            }
            _ if depth == 0 && is_keyword(Some(token), Keyword::PARTITION) => in_keys = true,
            _ => {}
        }
    }
    if start < tokens.len() {
        parts.push(&tokens[start..]);
    }
    parts
}

/// An argument without `NAME =>`.
fn without_name(tokens: &[TokenWithSpan]) -> &[TokenWithSpan] {
    match tokens {
        [_, arrow, rest @ ..] if arrow.token == Token::RArrow => rest,
        tokens => tokens,
    }
}

fn function_at(tokens: &[TokenWithSpan], at: usize) -> bool {
    let name = tokens.get(at).and_then(word);
    name.is_some_and(|name| FUNCTIONS.iter().any(|known| known.eq_ignore_ascii_case(name)))
        && is(tokens.get(at + 1), &Token::LParen)
}

/// Whether the tokens begin with `TABLE` or `DATA => TABLE`.
fn begins_table(tokens: &[TokenWithSpan]) -> bool {
    is_keyword(without_name(tokens).first(), Keyword::TABLE)
}

/// The parenthesis that closes the one at `open`.
fn closing(tokens: &[TokenWithSpan], open: usize) -> Option<usize> {
    let mut depth = 0usize;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match token.token {
            Token::LParen => depth += 1,
            Token::RParen if depth == 1 => return Some(at),
            Token::RParen => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    None
}

fn word(token: &TokenWithSpan) -> Option<&str> {
    match &token.token {
        Token::Word(word) if word.quote_style.is_none() => Some(&word.value),
        _ => None,
    }
}

fn is(token: Option<&TokenWithSpan>, wanted: &Token) -> bool {
    token.is_some_and(|token| token.token == *wanted)
}

fn is_keyword(token: Option<&TokenWithSpan>, keyword: Keyword) -> bool {
    matches!(token, Some(TokenWithSpan { token: Token::Word(word), .. }) if word.keyword == keyword)
}

fn error(span: Span, why: &str) -> DataFusionError {
    let at = span.start;
    DataFusionError::Plan(format!("{why} (line {}, column {})", at.line, at.column))
}
