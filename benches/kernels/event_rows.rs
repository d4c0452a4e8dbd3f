//! `EventRows::pack` and `Packed` against structs written field by field: a block of 8,192
//! events. The plain form takes 25 bytes per event; see `bytes` in the first line that is printed.

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use tidemill::kernels::event_rows::{Column, Packed, PackedUsers};

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
    assert_eq!(unpack(&rows(&events).pack()), events);
}

fn block(n_items: usize) -> Vec<Event> {
    events(n_items, 138_000, N_EVENTS)
}

fn unpack(packed: &[u8]) -> Vec<Event> {
    let packed = Packed::new(packed);
    let PackedUsers::Int(users) = &packed.users else { panic!("users are integers") };
    let [mut ids, mut times] = [Vec::new(), Vec::new()];
    let (mut items, mut kinds, mut values) = (Vec::new(), Vec::new(), Vec::new());
    users.decode(packed.n_rows, &mut ids, Column::as_i64);
    packed.items.decode(packed.n_rows, &mut items, |item| item as u32);
    packed.kinds.decode(packed.n_rows, &mut kinds, |kind| kind as u8);
    packed.values.decode(packed.n_rows, &mut values, |bits| f32::from_bits(bits as u32));
    packed.times.decode(packed.n_rows, &mut times, Column::as_i64);
    let event = |row: usize| Event {
        user: ids[row],
        item: items[row],
        kind: kinds[row],
        value: values[row],
        time: times[row],
    };
    (0..packed.n_rows).map(event).collect()
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
