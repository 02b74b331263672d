//! CRC32C (Castagnoli, as in iSCSI and SSE4.2): reflected polynomial 0x82F63B78, initial value and final xor all ones.
//!
//! With feature `std` the hardware instruction is chosen at run time (crate `crc32c`); without it, eight table look-ups
//! take eight bytes a step.

/// CRC32C of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc32c_append(0, bytes)
}

/// Continues a CRC32C: `crc32c_append(crc32c(a), b)` is the CRC of `a` followed by `b`.
pub fn crc32c_append(crc: u32, bytes: &[u8]) -> u32 {
    #[cfg(feature = "std")]
    {
        crc32c::crc32c_append(crc, bytes)
    }
    #[cfg(not(feature = "std"))]
    {
        portable_append(crc, bytes)
    }
}

const POLYNOMIAL: u32 = 0x82F6_3B78;

/// `TABLES[k][b]`: effect of byte `b` followed by `k` zero bytes.
static TABLES: [[u32; 256]; 8] = tables();

const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut k = 1;
    while k < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[k - 1][byte];
            tables[k][byte] = (before >> 8) ^ tables[0][(before & 0xff) as usize];
            byte += 1;
        }
        k += 1;
    }
    tables
}

/// The path without hardware help; public so that tests and benchmarks can compare the two.
pub fn portable_append(crc: u32, bytes: &[u8]) -> u32 {
    let mut crc = !crc;
    let (chunks, tail) = bytes.as_chunks::<8>();
    for chunk in chunks {
        let word = u64::from_le_bytes(*chunk) ^ u64::from(crc);
        crc = 0;
        for (k, table) in TABLES.iter().enumerate() {
            crc ^= table[(word >> (56 - 8 * k)) as usize & 0xff];
        }
    }
    for &byte in tail {
        crc = (crc >> 8) ^ TABLES[0][((crc ^ u32::from(byte)) & 0xff) as usize];
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_values_of_the_standard() {
        // RFC 3720 (iSCSI) appendix B.4, and the catalogue's check value.
        for crc in [crc32c, |b: &[u8]| portable_append(0, b)] {
            assert_eq!(crc(b"123456789"), 0xE306_9283);
            assert_eq!(crc(&[0; 32]), 0x8A91_36AA);
            assert_eq!(crc(&[0xff; 32]), 0x62A8_AB43);
            assert_eq!(crc(&core::array::from_fn::<u8, 32, _>(|i| i as u8)), 0x46DD_794E);
            assert_eq!(crc(&[]), 0);
        }
    }

    #[test]
    fn pieces_equal_the_whole_at_every_cut() {
        let bytes: [u8; 67] = core::array::from_fn(|i| (i * 37 + 11) as u8);
        let whole = crc32c(&bytes);
        for cut in 0..=bytes.len() {
            assert_eq!(crc32c_append(crc32c(&bytes[..cut]), &bytes[cut..]), whole);
            assert_eq!(portable_append(portable_append(0, &bytes[..cut]), &bytes[cut..]), whole);
        }
    }
}
