//! The whole line, tested from outside: one binary, one module per promise.

mod access;
mod aggregates;
mod alerts_stream;
mod analyst_sql;
mod crash;
mod dead_letters;
mod devices;
mod event_time;
mod exactness;
mod faults;
mod formats;
mod garbage;
mod lambda;
mod last_values;
mod late_data;
mod overload;
mod random_views;
mod reconnect;
mod schemas;
mod sparkplug;
mod sql_surface;
mod tidy;
mod uncomputable;
mod view_change;
mod windows;
mod write;
