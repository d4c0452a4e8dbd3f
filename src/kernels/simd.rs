//! The widest instructions of this machine, chosen while running: one binary is fast everywhere.
//!
//! A hot loop is plain Rust over fixed groups of lanes, so its sums have the same shape whatever the
//! instructions; `mul_add` is exact with or without an instruction for it. So the instruction set
//! changes the time and not the bytes. This is the only module of the kernels with `unsafe`.

/// A hot loop with its arguments.
///
/// `run` and everything it calls in its loop must be `#[inline(always)]`, or it is compiled without
/// the instructions that [`dispatch`] chose.
pub trait Kernel {
    /// What the loop returns.
    type Output;

    /// Runs the loop.
    fn run(self) -> Self::Output;
}

/// Runs `kernel` with AVX-512 or AVX2 where the machine has them, else as the target is compiled
/// (which has such instructions on ARM64).
#[inline]
pub fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    match level() {
        #[expect(unsafe_code, reason = "the level says that all its features were detected")]
        Level::Avx512 => return unsafe { with_avx512(kernel) },
        #[expect(unsafe_code, reason = "the level says that all its features were detected")]
        Level::Avx2 => return unsafe { with_avx2(kernel) },
        Level::Plain => {}
    }
    kernel.run()
}

/// The instructions that [`dispatch`] chooses on this machine.
pub fn chosen() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    match level() {
        Level::Avx512 => return "x86_64 with AVX-512",
        Level::Avx2 => return "x86_64 with AVX2 and FMA",
        Level::Plain => {}
    }
    std::env::consts::ARCH
}

/// What a kernel is compiled for.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Plain,
    Avx2,
    Avx512,
}

/// The highest level of this machine; the standard library remembers what it detected.
#[cfg(target_arch = "x86_64")]
#[inline]
fn level() -> Level {
    use std::arch::is_x86_feature_detected as detected;
    if !(detected!("avx2") && detected!("fma")) {
        Level::Plain
    } else if detected!("avx512f")
        && detected!("avx512bw")
        && detected!("avx512dq")
        && detected!("avx512vl")
    {
        Level::Avx512
    } else {
        Level::Avx2
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn with_avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn with_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

/// Lanes of a sum: rows of factors are padded with zeros to a multiple of it.
pub const LANES: usize = 16;

/// Σ a·b in [`LANES`] chains of fused multiply-adds, folded in halves.
///
/// # Panics
/// If the lengths differ or are no multiple of [`LANES`].
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    assert!(a.len() == b.len() && a_rest.is_empty() && b_rest.is_empty(), "padded rows");
    let mut lanes = [0.0f32; LANES];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            lanes[lane] = a[lane].mul_add(b[lane], lanes[lane]);
        }
    }
    fold(lanes)
}

/// The sum of all lanes: halves on top of each other until one is left.
#[inline(always)]
pub fn fold(lanes: [f32; LANES]) -> f32 {
    let eight: [f32; 8] = std::array::from_fn(|lane| lanes[lane] + lanes[lane + 8]);
    let four: [f32; 4] = std::array::from_fn(|lane| eight[lane] + eight[lane + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
}

/// `out += scale · row`, one fused multiply-add per element.
///
/// # Panics
/// If the lengths differ or are no multiple of [`LANES`].
#[inline(always)]
pub fn add_scaled(out: &mut [f32], scale: f32, row: &[f32]) {
    let (out, out_rest) = out.as_chunks_mut::<LANES>();
    let (row, row_rest) = row.as_chunks::<LANES>();
    assert!(out.len() == row.len() && out_rest.is_empty() && row_rest.is_empty(), "padded rows");
    for (out, row) in out.iter_mut().zip(row) {
        *out = scaled_sum(*out, scale, row);
    }
}

/// `sum + scale · row`. By value, so that nothing can overlap and the lanes stay in registers.
#[inline(always)]
pub fn scaled_sum(mut sum: [f32; LANES], scale: f32, row: &[f32; LANES]) -> [f32; LANES] {
    let row = *row;
    for lane in 0..LANES {
        sum[lane] = scale.mul_add(row[lane], sum[lane]);
    }
    sum
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
    use proptest::prelude::*;

    use super::*;

    struct Both<'a>(&'a [f32], &'a [f32]);

    impl Kernel for Both<'_> {
        type Output = (f32, Vec<f32>);

        #[inline(always)]
        fn run(self) -> (f32, Vec<f32>) {
            let mut sum = self.0.to_vec();
            add_scaled(&mut sum, 0.3, self.1);
            (dot(self.0, self.1), sum)
        }
    }

    proptest! {
        #[test]
        fn instructions_do_not_change_a_bit(
            pairs in (0usize..5).prop_flat_map(|n| prop::collection::vec((-9f32..9.0, -9f32..9.0), n * LANES))
        ) {
            let (a, b): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
            let (dot, sum) = dispatch(Both(&a, &b));
            let (plain_dot, plain_sum) = Both(&a, &b).run();
            prop_assert_eq!(dot.to_bits(), plain_dot.to_bits());
            prop_assert_eq!(&sum, &plain_sum);
            let exact: f64 = a.iter().zip(&b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
            prop_assert!((f64::from(dot) - exact).abs() <= 1e-3);
        }
    }
}
