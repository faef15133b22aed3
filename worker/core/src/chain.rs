//! Names for KV blocks: a 128-bit hash over everything that decides a block's content.
//!
//! The hash of a block is SipHash-2-4 with 128 bits of output (Aumasson and Bernstein, "SipHash: a fast
//! short-input PRF", and its reference implementation), keyed by (chain domain, salt), over the previous
//! block's hash and the block's 16 tokens. It is the same in every process and on every machine, and a
//! tenant's salt makes its names unpredictable to others.

use std::fmt;

use crate::block_pool::BLOCK;

/// The name of one full block of 16 tokens at its place in a sequence.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BlockHash(pub u128);

impl BlockHash {
    /// What stands before the first block of every chain.
    pub const ROOT: Self = Self(0);
}

impl fmt::Debug for BlockHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// What, besides its tokens, decides the names of a sequence's blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Chain {
    /// Digest of weights, packing, numeric class, RoPE and KV dtype.
    pub domain: u64,
    /// The trust region's salt; 0 is the public region.
    pub salt: u64,
    /// The first so many tokens are an operator-registered public prefix: blocks wholly inside it are
    /// named with salt 0 and shared by all tenants. The block that straddles the border is the tenant's.
    pub public_tokens: usize,
}

impl Chain {
    /// The name of block `index` (0-based), whose predecessor is `prev` ([`BlockHash::ROOT`] for index 0).
    pub fn link(&self, index: usize, prev: BlockHash, tokens: &[u32; BLOCK]) -> BlockHash {
        let public = (index + 1) * BLOCK <= self.public_tokens;
        let salt = if public { 0 } else { self.salt };
        let mut words = [0u64; 2 + BLOCK / 2];
        words[0] = prev.0 as u64;
        words[1] = (prev.0 >> 64) as u64;
        for (word, pair) in words[2..].iter_mut().zip(tokens.chunks_exact(2)) {
            *word = u64::from(pair[0]) | u64::from(pair[1]) << 32;
        }
        BlockHash(siphash128(self.domain, salt, &words))
    }

    /// The names of all full blocks of `tokens`, in order.
    pub fn hashes(&self, tokens: &[u32]) -> Vec<BlockHash> {
        let mut hashes = Vec::with_capacity(tokens.len() / BLOCK);
        self.extend(&mut hashes, tokens);
        hashes
    }

    /// Appends the names of the full blocks of `tokens` that `hashes` does not hold yet.
    pub fn extend(&self, hashes: &mut Vec<BlockHash>, tokens: &[u32]) {
        let (blocks, _) = tokens.as_chunks::<BLOCK>();
        for (index, block) in blocks.iter().enumerate().skip(hashes.len()) {
            let prev = hashes.last().copied().unwrap_or(BlockHash::ROOT);
            hashes.push(self.link(index, prev, block));
        }
    }
}

/// SipHash-2-4-128 of a message of whole little-endian words.
fn siphash128(k0: u64, k1: u64, words: &[u64]) -> u128 {
    let mut v = [
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d ^ 0xee,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ];
    // The last word of the padded message holds its length in bytes, modulo 256, in the top byte.
    let last = (words.len() as u64 * 8) << 56;
    for &word in words.iter().chain([&last]) {
        v[3] ^= word;
        rounds::<2>(&mut v);
        v[0] ^= word;
    }
    v[2] ^= 0xee;
    rounds::<4>(&mut v);
    let low = v[0] ^ v[1] ^ v[2] ^ v[3];
    v[1] ^= 0xdd;
    rounds::<4>(&mut v);
    let high = v[0] ^ v[1] ^ v[2] ^ v[3];
    u128::from(high) << 64 | u128::from(low)
}

fn rounds<const N: usize>(v: &mut [u64; 4]) {
    for _ in 0..N {
        v[0] = v[0].wrapping_add(v[1]);
        v[1] = v[1].rotate_left(13) ^ v[0];
        v[0] = v[0].rotate_left(32);
        v[2] = v[2].wrapping_add(v[3]);
        v[3] = v[3].rotate_left(16) ^ v[2];
        v[0] = v[0].wrapping_add(v[3]);
        v[3] = v[3].rotate_left(21) ^ v[0];
        v[2] = v[2].wrapping_add(v[1]);
        v[1] = v[1].rotate_left(17) ^ v[2];
        v[2] = v[2].rotate_left(32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `n` bytes 0, 1, 2, … as little-endian words: the message of the reference's test vectors.
    fn message(n: u8) -> Vec<u64> {
        let bytes: Vec<u8> = (0..n).collect();
        let (words, _) = bytes.as_chunks::<8>();
        words.iter().map(|word| u64::from_le_bytes(*word)).collect()
    }

    #[test]
    fn siphash_agrees_with_the_reference_vectors() {
        // `vectors_sip128` of the reference implementation; the last one from OpenSSL 3.0's SIPHASH.
        let expected = [
            (0, 0xa381_7f04_ba25_a8e6_6df6_7214_c755_0293_u128),
            (8, 0x3b62_a9ba_6258_f561_0f83_e264_f314_97b4),
            (16, 0x6ee2_a4ca_67b0_54bb_fd33_15bf_8523_0577),
            (80, 0xd2c7_6ae1_7a43_70f8_58fb_a479_5a0d_f822),
        ];
        for (length, hash) in expected {
            let got = siphash128(
                0x0706_0504_0302_0100,
                0x0f0e_0d0c_0b0a_0908,
                &message(length),
            );
            assert_eq!(got.to_le_bytes(), hash.to_be_bytes(), "{length} bytes");
        }
    }

    #[test]
    fn names_never_change_between_builds() {
        let chain = Chain {
            domain: 1,
            salt: 2,
            public_tokens: 0,
        };
        let tokens: Vec<u32> = (0..40).collect();
        let hashes = chain.hashes(&tokens);
        assert_eq!(hashes.len(), 2);
        // Computed with OpenSSL 3.0 over the little-endian bytes of hash and tokens.
        assert_eq!(
            format!("{:?}", hashes[1]),
            "5c48075d56023ec64f0aa84cc06c0a62"
        );
    }

    #[test]
    fn a_name_depends_on_all_that_decides_the_content() {
        let tokens: Vec<u32> = (0..32).collect();
        let base = Chain::default();
        let last = |chain: &Chain, tokens: &[u32]| chain.hashes(tokens).last().copied();
        let names = [
            last(&base, &tokens),
            last(&Chain { domain: 1, ..base }, &tokens),
            last(&Chain { salt: 1, ..base }, &tokens),
            last(&base, &tokens[16..]),
            last(&base, &[&[99], &tokens[1..]].concat()),
            last(&base, &[&tokens[..31], &[99]].concat()),
        ];
        for (i, a) in names.iter().enumerate() {
            assert!(
                names[i + 1..].iter().all(|b| a != b),
                "name {i} is not unique"
            );
        }
    }

    #[test]
    fn tenants_share_the_public_prefix_and_not_the_block_across_its_border() {
        let tokens: Vec<u32> = (0..64).collect();
        let names = |salt| {
            let public_tokens = 40;
            let chain = Chain {
                domain: 0,
                salt,
                public_tokens,
            };
            chain.hashes(&tokens)
        };
        let (a, b) = (names(1), names(2));
        assert_eq!(a[..2], b[..2]);
        assert!(a[2] != b[2] && a[3] != b[3]);
    }

    #[test]
    fn extending_token_by_token_gives_the_same_names() {
        let tokens: Vec<u32> = (0..50).collect();
        let chain = Chain::default();
        let mut hashes = Vec::new();
        for len in 0..=tokens.len() {
            chain.extend(&mut hashes, &tokens[..len]);
        }
        assert_eq!(hashes, chain.hashes(&tokens));
    }
}
