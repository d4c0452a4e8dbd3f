//! `EventRows::pack` and `unpack_into` against structs written field by field: a block of 8,192
//! events. The plain form takes 25 bytes per event; see `bytes` in the first line that is printed.

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use tidemill::kernels::event_rows::EventRows;
use tidemill::types::Ids;

use crate::log::{CATALOGUES, Event, events, rows};

const N_EVENTS: usize = 8_192;
const EVENT_BYTES: usize = 25;

#[divan::bench(args = CATALOGUES)]
fn pack_kernel(bencher: Bencher<'_, '_>, n_items: usize) {
    let rows = rows(&block(n_items));
    bencher.counter(ItemsCount::new(N_EVENTS)).bench_local(|| black_box(&rows).pack());
}

#[divan::bench(args = CATALOGUES)]
fn pack_plain(bencher: Bencher<'_, '_>, n_items: usize) {
    let events = block(n_items);
    bencher.counter(ItemsCount::new(N_EVENTS)).bench_local(|| write(black_box(&events)));
}

#[divan::bench(args = CATALOGUES)]
fn unpack_kernel(bencher: Bencher<'_, '_>, n_items: usize) {
    let packed = rows(&block(n_items)).pack();
    bencher.counter(ItemsCount::new(N_EVENTS)).bench_local(|| unpack(black_box(&packed)));
}

#[divan::bench(args = CATALOGUES)]
fn unpack_plain(bencher: Bencher<'_, '_>, n_items: usize) {
    let written = write(&block(n_items));
    bencher.counter(ItemsCount::new(N_EVENTS)).bench_local(|| read(black_box(&written)));
}

pub(crate) fn assert_equal() {
    let events = block(CATALOGUES[0]);
    assert_eq!(read(&write(&events)), events);
    assert_eq!(unpack(&rows(&events).pack()), rows(&events));
}

fn block(n_items: usize) -> Vec<Event> {
    events(n_items, 138_000, N_EVENTS)
}

fn unpack(packed: &[u8]) -> EventRows {
    let mut rows = EventRows::new_like(&Ids::Int(Vec::new()));
    EventRows::unpack_into(packed, &mut rows);
    rows
}

fn write(events: &[Event]) -> Vec<u8> {
    let mut out = Vec::with_capacity(EVENT_BYTES * events.len());
    for event in events {
        out.extend_from_slice(&event.user.to_le_bytes());
        out.extend_from_slice(&event.item.to_le_bytes());
        out.push(event.kind);
        out.extend_from_slice(&event.value.to_le_bytes());
        out.extend_from_slice(&event.time.to_le_bytes());
    }
    out
}

fn read(bytes: &[u8]) -> Vec<Event> {
    let event = |bytes: &[u8]| Event {
        user: i64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")),
        item: u32::from_le_bytes(bytes[8..12].try_into().expect("4 bytes")),
        kind: bytes[12],
        value: f32::from_le_bytes(bytes[13..17].try_into().expect("4 bytes")),
        time: i64::from_le_bytes(bytes[17..].try_into().expect("8 bytes")),
    };
    bytes.chunks_exact(EVENT_BYTES).map(event).collect()
}
