//! Events of one shard in as few bits as they need, in the order that decides between them.

use crate::kernels::event_rows::{Column, Packed};

use super::EventKind;

/// One event, with its fields in the order that decides between events of one user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Event {
    pub(super) item: u32,
    /// Time as the [`Layout`] counts it.
    pub(super) ticks: u64,
    /// Undo events come after the others of the same instant.
    pub(super) is_undo: bool,
    pub(super) kind: u8,
    pub(super) value_bits: u32,
    /// Row that it came from, where its id is; 0 in a shard without ids. The order of events that
    /// differ in nothing else decides nothing.
    pub(super) row: u32,
}

/// How times of a shard are counted, and how many bits each field of its events needs.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    first_us: i64,
    tick_us: u64,
    value_low: u32,
    /// The fields below the item, from the lowest up.
    row: Field,
    value: Field,
    kind: Field,
    undo: Field,
    ticks: Field,
    item_shift: u32,
    item_width: u32,
}

/// Bits of a key.
#[derive(Clone, Copy, Debug)]
struct Field {
    shift: u32,
    mask: u64,
}

impl Field {
    /// For numbers up to `largest`, above the lowest `shift` bits, which it adds its own to.
    fn above(shift: &mut u32, largest: u64) -> Self {
        let width = bits(largest);
        let mask = u64::MAX.checked_shr(u64::BITS - width).unwrap_or(0);
        let field = Self { shift: *shift, mask };
        *shift += width;
        field
    }

    #[inline]
    fn of(self, key: u64) -> u64 {
        key.wrapping_shr(self.shift) & self.mask
    }

    #[inline]
    fn with(self, number: u64) -> u64 {
        number.wrapping_shl(self.shift)
    }
}

impl Layout {
    /// Of rows in `blocks` that hold ranks below `n_items`.
    pub(super) fn of(blocks: &[Packed<'_>], kinds: &[EventKind], n_items: usize) -> Self {
        let lowest = |column: fn(&Packed<'_>) -> u64| blocks.iter().map(column).min().unwrap_or(0);
        let highest = |column: fn(&Packed<'_>) -> u64| blocks.iter().map(column).max().unwrap_or(0);
        let (first, last) = (lowest(|of| of.times.low()), highest(|of| of.times.high()));
        let tick = common_tick(blocks, first);
        let value_low = lowest(|of| of.values.low());
        let has_ids = blocks.iter().any(|of| of.digests.is_some());
        let n_rows: usize = blocks.iter().map(|of| of.n_rows).sum();
        let may_undo = kinds.iter().any(EventKind::may_undo);
        let mut shift = 0;
        let mut field = |largest: u64| Field::above(&mut shift, largest);
        let row = field(if has_ids { n_rows as u64 } else { 0 });
        let value = field(highest(|of| of.values.high()) - value_low);
        let kind = field(kinds.len().saturating_sub(1) as u64);
        let undo = field(u64::from(may_undo));
        let ticks = field((last - first) / tick);
        Self {
            first_us: Column::as_i64(first),
            tick_us: tick,
            value_low: value_low as u32,
            row,
            value,
            kind,
            undo,
            ticks,
            item_shift: shift,
            item_width: bits(n_items as u64).max(1),
        }
    }

    /// Whether so many bits hold an event.
    pub(super) fn fits(&self, bits: u32) -> bool {
        // An item has a bit at least, so no field but it begins at the last one.
        self.item_shift + self.item_width <= bits
    }

    /// Whether events differ in their items alone.
    pub(super) fn is_item_alone(&self) -> bool {
        self.item_shift == 0
    }

    /// Microseconds since 1970.
    #[inline]
    pub(super) fn time_us(&self, ticks: u64) -> i64 {
        self.first_us.wrapping_add(self.tick_us.wrapping_mul(ticks) as i64)
    }

    /// What `ticks` of this layout an offset in `times` is: to be multiplied by, and to be added.
    pub(super) fn ticks_of(&self, times: &Column<'_>) -> (u64, u64) {
        let first = times.low().wrapping_sub(self.first_us as u64 ^ (1 << 63));
        (times.tick() / self.tick_us, first / self.tick_us)
    }
}

/// The coarsest tick in which all times are whole, counted from the first.
fn common_tick(blocks: &[Packed<'_>], first: u64) -> u64 {
    let is_whole = |tick: u64| {
        let whole = |of: &Packed<'_>| {
            of.times.tick().is_multiple_of(tick) && (of.times.low() - first).is_multiple_of(tick)
        };
        blocks.iter().all(whole)
    };
    [1_000_000, 1_000].into_iter().find(|&tick| is_whole(tick)).unwrap_or(1)
}

fn bits(largest: u64) -> u32 {
    u64::BITS - largest.leading_zeros()
}

/// What stands for an event while events are sorted, in the order of [`Event`].
pub(super) trait Key: Copy + Default + Ord {
    /// Of an event.
    fn new(event: Event, layout: &Layout) -> Self;

    /// Of an event whose layout [has its item alone](Layout::is_item_alone).
    fn of_item(item: u32) -> Self;

    /// The event.
    fn event(self, layout: &Layout) -> Event;

    /// The event's item.
    fn item(self, layout: &Layout) -> u32;

    /// The event's time.
    fn ticks(self, layout: &Layout) -> u64;

    /// The event's kind.
    fn kind(self, layout: &Layout) -> u8;

    /// Sorts the events of a user; `spare` is room.
    fn sort(events: &mut [Self], layout: &Layout, spare: &mut Vec<Self>) {
        let _ = (layout, spare);
        events.sort_unstable();
    }
}

impl Key for Event {
    #[inline]
    fn new(event: Event, _: &Layout) -> Self {
        event
    }

    #[inline]
    fn of_item(item: u32) -> Self {
        Self { item, ..Self::default() }
    }

    #[inline]
    fn event(self, _: &Layout) -> Event {
        self
    }

    #[inline]
    fn item(self, _: &Layout) -> u32 {
        self.item
    }

    #[inline]
    fn ticks(self, _: &Layout) -> u64 {
        self.ticks
    }

    #[inline]
    fn kind(self, _: &Layout) -> u8 {
        self.kind
    }
}

/// All fields side by side, where the layout [fits](Layout::fits).
macro_rules! impl_key {
    ($word:ty) => {
        impl Key for $word {
            #[inline]
            fn new(event: Event, layout: &Layout) -> Self {
                let value = event.value_bits.wrapping_sub(layout.value_low);
                let key = u64::from(event.item).wrapping_shl(layout.item_shift)
                    | layout.ticks.with(event.ticks)
                    | layout.undo.with(event.is_undo.into())
                    | layout.kind.with(event.kind.into())
                    | layout.value.with(value.into())
                    | layout.row.with(event.row.into());
                key as Self
            }

            #[inline]
            fn of_item(item: u32) -> Self {
                item.into()
            }

            #[inline]
            fn event(self, layout: &Layout) -> Event {
                let key = u64::from(self);
                Event {
                    item: self.item(layout),
                    ticks: self.ticks(layout),
                    is_undo: layout.undo.of(key) != 0,
                    kind: self.kind(layout),
                    value_bits: (layout.value.of(key) as u32).wrapping_add(layout.value_low),
                    row: layout.row.of(key) as u32,
                }
            }

            #[inline]
            fn item(self, layout: &Layout) -> u32 {
                u64::from(self).wrapping_shr(layout.item_shift) as u32
            }

            #[inline]
            fn ticks(self, layout: &Layout) -> u64 {
                layout.ticks.of(self.into())
            }

            #[inline]
            fn kind(self, layout: &Layout) -> u8 {
                layout.kind.of(self.into()) as u8
            }

            fn sort(events: &mut [Self], layout: &Layout, spare: &mut Vec<Self>) {
                if events.len() < RADIX_EVENTS_MIN {
                    events.sort_unstable();
                    return;
                }
                radix_sort(events, layout.item_shift, layout.item_width, spare);
                for of_item in events.chunk_by_mut(|a, b| a.item(layout) == b.item(layout)) {
                    if of_item.len() > 1 {
                        of_item.sort_unstable();
                    }
                }
            }
        }
    };
}

impl_key!(u32);
impl_key!(u64);

/// Below this, comparing is faster than counting digits.
const RADIX_EVENTS_MIN: usize = 96;

/// Stable sort by the `width` highest bits above `shift`: passes of at most 8 bits, lowest first.
fn radix_sort<W>(keys: &mut [W], shift: u32, width: u32, spare: &mut Vec<W>)
where
    W: Copy + Into<u64>,
{
    let n_passes = width.div_ceil(8);
    let digit_width = width.div_ceil(n_passes);
    spare.clear();
    spare.extend_from_slice(keys);
    let (mut from, mut to) = (&mut keys[..], &mut spare[..]);
    for pass in 0..n_passes {
        scatter(from, to, shift + pass * digit_width, digit_width);
        (from, to) = (to, from);
    }
    if n_passes % 2 == 1 {
        to.copy_from_slice(from);
    }
}

/// One pass: keys in the order of one digit.
fn scatter<W: Copy + Into<u64>>(from: &[W], to: &mut [W], shift: u32, width: u32) {
    let mask = (1usize << width) - 1;
    let digit = |key: W| key.into().wrapping_shr(shift) as usize & mask;
    let mut places = [0u32; 256];
    for &key in from {
        places[digit(key)] += 1;
    }
    let mut next = 0;
    for place in &mut places[..=mask] {
        (*place, next) = (next, next + *place);
    }
    for &key in from {
        let place = &mut places[digit(key)];
        to[*place as usize] = key;
        *place += 1;
    }
}
