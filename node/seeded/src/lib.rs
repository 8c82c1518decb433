//! What dependencies ask the operating system behind everybody's back, from a seed: the keys of hash maps, the order in which
//! tokio wakes some tasks, and the date that hyper puts into responses. For simulations that are to be the same twice.
//!
//! A program that uses this crate has these two functions in the place of the C library's; until [`seed`] is called they
//! pass everything on.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use libc::{
    CLOCK_REALTIME, SYS_clock_gettime, SYS_getrandom, c_int, c_long, c_uint, c_void, clockid_t, timespec,
};

/// 2023-11-14, whenever it is asked for.
const NOW_S: i64 = 1_700_000_000;

static SEEDED: AtomicBool = AtomicBool::new(false);
static STATE: AtomicU64 = AtomicU64::new(0);

/// From now on, and for the whole process, chance follows `seed`, and the time of day stands still.
pub fn seed(seed: u64) {
    STATE.store(seed, Relaxed);
    SEEDED.store(true, Relaxed);
}

/// See getrandom(2).
///
/// # Safety
/// As there: `buffer` has room for `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut c_void, length: usize, flags: c_uint) -> isize {
    if !SEEDED.load(Relaxed) {
        // SAFETY: the caller keeps the rules of the call, whose arguments these are.
        return unsafe { libc::syscall(SYS_getrandom, buffer, length, flags) } as isize;
    }
    // SAFETY: the caller says that there is room for so many bytes.
    let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) };
    for byte in bytes {
        // The high bits of a linear congruential generator (Knuth's MMIX).
        let next = |state: u64| {
            Some(
                state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407),
            )
        };
        let state = STATE.fetch_update(Relaxed, Relaxed, next).unwrap_or_default();
        *byte = (state >> 56) as u8;
    }
    length.cast_signed()
}

/// See clock_gettime(3).
///
/// # Safety
/// As there: `time` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: clockid_t, time: *mut timespec) -> c_int {
    if SEEDED.load(Relaxed) && clock == CLOCK_REALTIME {
        let now = timespec {
            tv_sec: NOW_S,
            tv_nsec: 0,
        };
        // SAFETY: the caller says that it can be written.
        unsafe { time.write(now) };
        return 0;
    }
    // SAFETY: the caller keeps the rules of the call, whose arguments these are.
    let result: c_long = unsafe { libc::syscall(SYS_clock_gettime, clock, time) };
    result as c_int
}
