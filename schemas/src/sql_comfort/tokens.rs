//! DuckDB's form of `ASOF JOIN` in the text, put into the one form that the parser knows.
//!
//! ```text
//!   a ASOF LEFT JOIN b ON ...                         a ASOF JOIN b MATCH_CONDITION (asof_left) ON ...
//!   a ASOF JOIN b USING (k, t)                 ───▶   a ASOF JOIN b MATCH_CONDITION (asof_inner) USING (k, t)
//!   a ASOF LEFT JOIN b MATCH_CONDITION (c) ON ...     a ASOF JOIN b MATCH_CONDITION (asof_left(c)) ON ...
//! ```

use std::borrow::Cow;

use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};

/// In place of the condition: the rows of the left side without a match are dropped.
pub(super) const INNER: &str = "asof_inner";
/// ... are kept.
pub(super) const LEFT: &str = "asof_left";

/// The text of one or more statements with DuckDB's form of `ASOF JOIN` replaced, ready to be parsed.
///
/// Everything else stays as it is, to the letter. A text that cannot be cut into tokens is left to the parser,
/// which says why.
pub fn prepare(sql: &str) -> Cow<'_, str> {
    if !sql.to_ascii_lowercase().contains("asof") {
        return Cow::Borrowed(sql);
    }
    let Ok(tokens) = Tokenizer::new(&GenericDialect {}, sql).with_unescape(false).tokenize() else {
        return Cow::Borrowed(sql);
    };
    let mut text: Vec<String> = tokens.iter().map(ToString::to_string).collect();
    let words: Vec<usize> =
        (0..tokens.len()).filter(|i| !matches!(tokens[*i], Token::Whitespace(_))).collect();
    let keyword = |at: usize| words.get(at).map_or(Keyword::NoKeyword, |i| keyword_of(&tokens[*i]));
    let mut changed = false;
    for at in 0..words.len() {
        if keyword(at) != Keyword::ASOF {
            continue;
        }
        let mut join = at + 1;
        while matches!(keyword(join), Keyword::LEFT | Keyword::INNER | Keyword::OUTER) {
            join += 1;
        }
        if keyword(join) != Keyword::JOIN {
            continue;
        }
        let keeps_left = (at + 1..join).any(|word| keyword(word) == Keyword::LEFT);
        changed |= rewrite(&mut text, &tokens, &words, join, keeps_left);
        for word in at + 1..join {
            text[words[word]].clear();
            changed = true;
        }
    }
    if changed { Cow::Owned(text.concat()) } else { Cow::Borrowed(sql) }
}

/// Rewrites what follows the word `JOIN` at `join`; says whether it changed anything.
fn rewrite(text: &mut [String], tokens: &[Token], words: &[usize], join: usize, keeps_left: bool) -> bool {
    let mut depth = 0;
    let mut condition = false;
    for word in &words[join + 1..] {
        match &tokens[*word] {
            Token::LParen => {
                depth += 1;
                if condition && depth == 1 && keeps_left {
                    text[*word] = format!("({LEFT}(");
                }
            }
            Token::RParen if depth == 0 => return false,
            Token::RParen => {
                depth -= 1;
                if condition && depth == 0 {
                    if keeps_left {
                        text[*word] = "))".to_owned();
                    }
                    return keeps_left;
                }
            }
            Token::SemiColon => return false,
            token if depth == 0 => match keyword_of(token) {
                Keyword::MATCH_CONDITION => condition = true,
                Keyword::ON | Keyword::USING => {
                    let kind = if keeps_left { LEFT } else { INNER };
                    text[*word] = format!("MATCH_CONDITION ({kind}) {}", text[*word]);
                    return true;
                }
                Keyword::WHERE | Keyword::GROUP | Keyword::ORDER | Keyword::LIMIT | Keyword::JOIN => {
                    return false;
                }
                _ => {}
            },
            _ => {}
        }
    }
    false
}

fn keyword_of(token: &Token) -> Keyword {
    match token {
        Token::Word(word) if word.quote_style.is_none() => word.keyword,
        _ => Keyword::NoKeyword,
    }
}
