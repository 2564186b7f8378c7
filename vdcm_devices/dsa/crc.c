/*
 * The two checksums: CRC-32C (appendix A of the DSA specification; RFC 3720) and the CRC-16 of T10
 * that guards a block (appendix B). By tables that take eight bytes at a time; CRC-32C by the CPU's
 * instruction where it has one.
 */
#include <string.h>

#include "engine.h"

#define CRC32C_REFLECTED 0x82f63b78u /* 0x1edc6f41, bit 0 first */
#define CRC16_T10 0x8bb7u

/* Row k: what a byte does to the remainder when k more bytes follow it. */
static uint32_t table32[8][256];
static uint16_t table16[8][256];
static bool instruction;

static __attribute__((constructor)) void make_tables(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t c32 = byte;
        uint16_t c16 = (uint16_t)(byte << 8);

        for (int bit = 0; bit < 8; bit++) {
            c32 = (c32 >> 1) ^ (c32 & 1 ? CRC32C_REFLECTED : 0);
            c16 = (uint16_t)((c16 << 1) ^ (c16 & 0x8000 ? CRC16_T10 : 0));
        }
        table32[0][byte] = c32;
        table16[0][byte] = c16;
    }
    for (int row = 1; row < 8; row++) {
        for (uint32_t byte = 0; byte < 256; byte++) {
            uint32_t c32 = table32[row - 1][byte];
            uint16_t c16 = table16[row - 1][byte];

            table32[row][byte] = (c32 >> 8) ^ table32[0][c32 & 0xff];
            table16[row][byte] = (uint16_t)((c16 << 8) ^ table16[0][c16 >> 8]);
        }
    }
#ifdef __x86_64__
    __builtin_cpu_init();
    instruction = __builtin_cpu_supports("sse4.2");
#endif
}

static uint32_t by_table(uint32_t crc, const uint8_t *data, size_t length)
{
    for (; length >= 8; length -= 8, data += 8) {
        uint64_t word;

        memcpy(&word, data, 8);
        word ^= crc;
        crc = 0;
        for (int i = 0; i < 8; i++) {
            crc ^= table32[7 - i][(word >> (8 * i)) & 0xff];
        }
    }
    for (; length > 0; length--, data++) {
        crc = (crc >> 8) ^ table32[0][(crc ^ *data) & 0xff];
    }
    return crc;
}

#ifdef __x86_64__
static __attribute__((target("sse4.2"))) uint32_t by_instruction(uint32_t crc, const uint8_t *data,
                                                                 size_t length)
{
    uint64_t wide = crc;

    for (; length >= 8; length -= 8, data += 8) {
        uint64_t word;

        memcpy(&word, data, 8);
        wide = __builtin_ia32_crc32di(wide, word);
    }
    crc = (uint32_t)wide;
    for (; length > 0; length--, data++) {
        crc = __builtin_ia32_crc32qi(crc, *data);
    }
    return crc;
}
#endif

static uint32_t update(uint32_t crc, const uint8_t *data, size_t length, bool fast)
{
#ifdef __x86_64__
    if (fast && instruction) {
        return by_instruction(crc, data, length);
    }
#endif
    (void)fast;
    (void)instruction;
    return by_table(crc, data, length);
}

/* The bits of every byte the other way round. */
static uint64_t reverse_bytes(uint64_t word)
{
    word = ((word >> 1) & 0x5555555555555555) | ((word & 0x5555555555555555) << 1);
    word = ((word >> 2) & 0x3333333333333333) | ((word & 0x3333333333333333) << 2);
    return ((word >> 4) & 0x0f0f0f0f0f0f0f0f) | ((word & 0x0f0f0f0f0f0f0f0f) << 4);
}

uint32_t dsa_reverse32(uint32_t value)
{
    return __builtin_bswap32((uint32_t)reverse_bytes(value));
}

uint32_t dsa_crc32c_raw(uint32_t crc, const uint8_t *data, size_t length, bool bypass)
{
    uint64_t words[64] = {0};

    if (!bypass) {
        return update(crc, data, length, true);
    }
    while (length > 0) {
        size_t n = length < sizeof(words) ? length : sizeof(words);

        memcpy(words, data, n);
        for (size_t i = 0; i < (n + 7) / 8; i++) {
            words[i] = reverse_bytes(words[i]);
        }
        crc = update(crc, (const uint8_t *)words, n, true);
        data += n;
        length -= n;
    }
    return crc;
}

uint32_t dsa_crc32c(uint32_t crc, const void *data, size_t length, bool fast)
{
    return ~update(~crc, data, length, fast);
}

uint16_t dsa_crc16_t10(uint16_t crc, const uint8_t *data, size_t length)
{
    for (; length >= 8; length -= 8, data += 8) {
        uint16_t next = table16[7][data[0] ^ (crc >> 8)] ^ table16[6][data[1] ^ (crc & 0xff)];

        for (int i = 2; i < 8; i++) {
            next ^= table16[7 - i][data[i]];
        }
        crc = next;
    }
    for (; length > 0; length--, data++) {
        crc = (uint16_t)((crc << 8) ^ table16[0][(crc >> 8) ^ *data]);
    }
    return crc;
}
