//! The write-ahead log: what its frames hold, and the thread that writes them.

pub(crate) mod record;
pub(crate) mod sparkplug_file;
pub(crate) mod window_file;
pub(crate) mod writer;
