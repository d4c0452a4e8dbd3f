//! The widest instructions of this machine, chosen while running: one binary is fast everywhere.
//!
//! A hot loop works on fixed groups of lanes, so its sums have the same shape whatever the
//! instructions; `mul_add` is exact with or without an instruction for it. So the instruction set
//! changes the time and not the bytes. This module and those below it are the only ones of the
//! kernels with `unsafe`.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::half::Half;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod plain;

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
pub use plain::Plain;

/// A set of instructions that kernels are compiled for. The bits are the same at each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What the target has anyway.
    Plain,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
}

impl Level {
    /// All of them, lowest first.
    pub const ALL: [Self; 3] = [Self::Plain, Self::Avx2, Self::Avx512];

    /// As [`limit`] is told of it on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }
}

/// The highest level that may be used, as its place among [`Level::ALL`].
static HIGHEST: AtomicUsize = AtomicUsize::new(Level::Avx512 as usize);

/// Uses no instructions beyond `level` from now on, in the whole process.
pub fn limit(level: Level) {
    HIGHEST.store(level as usize, Ordering::Relaxed);
}

/// The instructions that [`dispatch`] chooses on this machine.
pub fn chosen() -> &'static str {
    match level() {
        Level::Avx512 => "x86_64 with AVX-512",
        Level::Avx2 => "x86_64 with AVX2 and FMA",
        Level::Plain => std::env::consts::ARCH,
    }
}

/// The level to be used: the highest of this machine within the limit.
#[inline]
fn level() -> Level {
    let within = detected().min(Level::ALL[HIGHEST.load(Ordering::Relaxed)]);
    #[cfg(test)]
    return within.min(tests::MOST.get());
    #[cfg(not(test))]
    within
}

/// The highest level of this machine; the standard library remembers what it detected.
#[inline]
fn detected() -> Level {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as detected;
        let avx512 = detected!("avx512f")
            && detected!("avx512bw")
            && detected!("avx512dq")
            && detected!("avx512vl");
        if detected!("avx2") && detected!("fma") && detected!("f16c") {
            return if avx512 { Level::Avx512 } else { Level::Avx2 };
        }
    }
    Level::Plain
}

/// What `run` returns at each level of this machine; it has to stay on this thread.
#[cfg(test)]
pub(crate) fn at_each_level<T>(run: impl Fn() -> T) -> Vec<T> {
    let levels = Level::ALL.into_iter().filter(|&level| level <= detected());
    let at = |level| {
        tests::MOST.set(level);
        let result = run();
        tests::MOST.set(Level::Avx512);
        result
    };
    levels.map(at).collect()
}

/// The lanes of one level of instructions. Whatever the level, the bits are the same.
///
/// A value of a level proves that the machine has it, so the methods are safe.
pub trait Simd: Copy {
    /// [`LANES`] numbers.
    type Lanes: Copy;

    /// How many lanes the registers hold.
    const REGISTERS: usize;

    /// The same number in all lanes.
    fn splat(self, value: f32) -> Self::Lanes;

    /// A group of a row.
    fn load(self, values: &[f32; LANES]) -> Self::Lanes;

    /// A group of a row in 16 bits.
    fn load_half(self, values: &[Half; LANES]) -> Self::Lanes;

    /// Four numbers, each in the four lanes of its quarter.
    fn quarters(self, values: &[f32; 4]) -> Self::Lanes;

    /// Puts the lanes into a group of a row.
    fn store(self, lanes: Self::Lanes, to: &mut [f32; LANES]);

    /// a + b.
    fn add(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;

    /// a · b + c, rounded once.
    fn mul_add(self, a: Self::Lanes, b: Self::Lanes, c: Self::Lanes) -> Self::Lanes;

    /// The sum of all lanes: halves on top of each other until one is left.
    fn fold(self, lanes: Self::Lanes) -> f32;

    /// [`fold`](Simd::fold) of four rows, each in the four lanes of its quarter.
    fn fold_four(self, rows: [Self::Lanes; 4]) -> Self::Lanes;

    /// a · b.
    fn mul(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;

    /// The lanes of `then` where a > b, else those of `otherwise`; their bits are only moved.
    fn where_greater(
        self,
        a: Self::Lanes,
        b: Self::Lanes,
        then: Self::Lanes,
        otherwise: Self::Lanes,
    ) -> Self::Lanes;

    /// Lane i of row j for lane j of row i.
    fn transpose(self, rows: [Self::Lanes; LANES]) -> [Self::Lanes; LANES];

    /// Whether a ≥ b: a bit per lane, of the first lane the lowest.
    fn at_least(self, a: Self::Lanes, b: Self::Lanes) -> u32;

    /// Which bytes have this bit, from 0: a bit per byte, of the first byte the lowest.
    fn bytes_with(self, bit: u32, bytes: &[u8; 64]) -> u64;

    /// Asks for the cache line of this number, which is read soon.
    fn prefetch<T>(self, number: &T);
}

/// A hot loop with its arguments.
///
/// `run` and everything it calls in its loop must be `#[inline(always)]`, or it is compiled without
/// the instructions that [`dispatch`] chose; so are closures, unless what they call needs none.
pub trait Kernel {
    /// What the loop returns.
    type Output;

    /// Runs the loop.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Runs `kernel` with AVX-512 or AVX2 where the machine has them, else as the target is compiled
/// (which has such instructions on ARM64).
#[inline]
pub fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    match level() {
        #[expect(unsafe_code, reason = "the level says that all its features were detected")]
        Level::Avx512 => return unsafe { in_avx512(kernel) },
        #[expect(unsafe_code, reason = "the level says that all its features were detected")]
        Level::Avx2 => return unsafe { in_avx2(kernel) },
        Level::Plain => {}
    }
    kernel.run(Plain)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
fn in_avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx512(()))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn in_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx2(()))
}

/// The lower half of [`Simd::fold`]'s tree.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
#[expect(unsafe_code, reason = "only called by levels that have AVX2")]
unsafe fn fold_8(eight: std::arch::x86_64::__m256) -> f32 {
    use std::arch::x86_64::*;
    unsafe {
        let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
    }
}

/// Σ a·b in [`LANES`] chains of fused multiply-adds, folded in halves.
///
/// # Panics
/// If the lengths differ or are no multiple of [`LANES`].
#[inline(always)]
pub fn dot<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    assert!(a.len() == b.len() && a_rest.is_empty() && b_rest.is_empty(), "padded rows");
    let mut lanes = simd.splat(0.0);
    for (a, b) in a.iter().zip(b) {
        lanes = simd.mul_add(simd.load(a), simd.load(b), lanes);
    }
    simd.fold(lanes)
}

/// `out += scale · row`, one fused multiply-add per element.
///
/// # Panics
/// If the lengths differ or are no multiple of [`LANES`].
#[inline(always)]
pub fn add_scaled<S: Simd>(simd: S, out: &mut [f32], scale: f32, row: &[f32]) {
    let (out, out_rest) = out.as_chunks_mut::<LANES>();
    let (row, row_rest) = row.as_chunks::<LANES>();
    assert!(out.len() == row.len() && out_rest.is_empty() && row_rest.is_empty(), "padded rows");
    let scale = simd.splat(scale);
    for (out, row) in out.iter_mut().zip(row) {
        simd.store(simd.mul_add(scale, simd.load(row), simd.load(out)), out);
    }
}

/// Lanes of a sum: rows of factors are padded with zeros to a multiple of it.
pub const LANES: usize = 16;

/// The sum of all lanes: halves on top of each other until one is left.
#[inline(always)]
pub fn fold(lanes: [f32; LANES]) -> f32 {
    let eight: [f32; 8] = std::array::from_fn(|lane| lanes[lane] + lanes[lane + 8]);
    let four: [f32; 4] = std::array::from_fn(|lane| eight[lane] + eight[lane + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
}

/// Asks for the cache line of one element of a slice, which will be read soon; no element, no effect.
///
/// For reads at places that no hardware guesses, a few places ahead of the work.
#[inline(always)]
pub fn prefetch<T>(slice: &[T], at: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(element) = slice.get(at) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        #[expect(unsafe_code, reason = "a prefetch reads nothing, and the element is there")]
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(element).cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (slice, at);
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    thread_local! {
        /// The highest level that this thread may use.
        pub(super) static MOST: Cell<Level> = const { Cell::new(Level::Avx512) };
    }

    struct Both<'a>(&'a [f32], &'a [f32]);

    impl Kernel for Both<'_> {
        type Output = (f32, Vec<f32>);

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> (f32, Vec<f32>) {
            let mut sum = self.0.to_vec();
            add_scaled(simd, &mut sum, 0.3, self.1);
            (dot(simd, self.0, self.1), sum)
        }
    }

    /// Every operation of lanes on these rows.
    struct Each([[f32; LANES]; LANES]);

    impl Kernel for Each {
        type Output = (Vec<[f32; LANES]>, Vec<[f32; LANES]>, Vec<u32>);

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Self::Output {
            let mut rows = [simd.splat(0.0); LANES];
            for (lanes, row) in rows.iter_mut().zip(&self.0) {
                *lanes = simd.load(row);
            }
            let [a, b, c, ..] = rows;
            let mixed = [
                simd.add(a, b),
                simd.mul(a, b),
                simd.mul_add(a, b, c),
                simd.where_greater(a, b, c, a),
                simd.splat(simd.fold(a)),
            ];
            let stored = |simd: S, lanes: &[S::Lanes]| {
                let mut stored = vec![[0.0; LANES]; lanes.len()];
                stored.iter_mut().zip(lanes).for_each(|(to, &lanes)| simd.store(lanes, to));
                stored
            };
            let four = stored(simd, &[simd.fold_four([rows[0], rows[1], rows[2], rows[3]])]);
            let folded = std::array::from_fn(|row| simd.fold(rows[row]));
            let spread = stored(simd, &[simd.quarters(&folded)]);
            assert_eq!(four, spread, "four rows or one");
            let quarters: [f32; LANES] = std::array::from_fn(|lane| folded[lane / 4]);
            assert_eq!(spread[0], quarters);
            let columns = stored(simd, &simd.transpose(rows));
            (stored(simd, &mixed), columns, vec![simd.at_least(a, b), simd.at_least(b, a)])
        }
    }

    proptest! {
        #[test]
        fn instructions_do_not_change_a_bit(
            pairs in (0usize..5).prop_flat_map(|n| prop::collection::vec((-9f32..9.0, -9f32..9.0), n * LANES))
        ) {
            let (a, b): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
            let (dot, sum) = dispatch(Both(&a, &b));
            let (plain_dot, plain_sum) = Both(&a, &b).run(Plain);
            prop_assert_eq!(dot.to_bits(), plain_dot.to_bits());
            prop_assert_eq!(&sum, &plain_sum);
            let exact: f64 = a.iter().zip(&b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
            prop_assert!((f64::from(dot) - exact).abs() <= 1e-3);
        }

        #[test]
        fn lanes_are_those_of_the_plain_level(
            rows in prop::array::uniform16(prop::array::uniform16(-3i8..4))
        ) {
            let rows = rows.map(|row| row.map(|value| f32::from(value) / 4.0));
            let found = super::at_each_level(|| dispatch(Each(rows)));
            for other in &found[1..] {
                prop_assert_eq!(other, &found[0]);
            }
            for (lane, column) in found[0].1.iter().enumerate() {
                prop_assert_eq!(column, &rows.map(|row| row[lane]));
            }
        }
    }
}
