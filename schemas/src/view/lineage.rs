//! What a view reads: the stream in the end, and the views between.

use std::sync::Arc;

use crate::catalog::ViewDef;
use crate::error::{Error, Result};
use crate::session::small_context;

/// The one table that a query reads.
pub fn source_of(def: &ViewDef) -> Result<String> {
    let wrong = |why: String| Error::invalid(format!("view `{}`: {why}", def.name));
    let context = small_context();
    let statement = crate::sql::parse(&def.sql).map_err(|e| wrong(e.strip_backtrace()))?;
    let tables =
        context.state().resolve_table_references(&statement).map_err(|e| wrong(e.strip_backtrace()))?;
    match tables.as_slice() {
        [table] => Ok(table.table().to_owned()),
        [] => Err(wrong("the query reads no stream; write SELECT ... FROM a_stream GROUP BY ...".into())),
        many => {
            let names: Vec<String> = many.iter().map(ToString::to_string).collect();
            Err(wrong(format!("the query reads {}; a view reads exactly one stream", names.join(" and "))))
        }
    }
}

/// The stream that `def` reads, and the views through which it reads it, the one nearest to the stream first.
/// `find` says which names are views.
pub fn lineage(
    def: &ViewDef,
    find: impl Fn(&str) -> Option<Arc<ViewDef>>,
) -> Result<(Vec<Arc<ViewDef>>, String)> {
    let mut bases: Vec<Arc<ViewDef>> = Vec::new();
    let mut source = source_of(def)?;
    while let Some(base) = find(&source) {
        if base.name == def.name || bases.iter().any(|seen| seen.name == base.name) {
            let through = bases.iter().rev().map(|base| base.name.as_str());
            let way: Vec<&str> = [def.name.as_str()].into_iter().chain(through).chain([&*source]).collect();
            return Err(Error::invalid(format!(
                "view `{}` reads itself: {}; a view reads a stream in the end",
                def.name,
                way.join(" -> ")
            )));
        }
        source = source_of(&base)?;
        bases.insert(0, base);
    }
    Ok((bases, source))
}
