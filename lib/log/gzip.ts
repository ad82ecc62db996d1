/**
 * Reads gzip files as they are found: of several members, padded, damaged, cut short.
 * @module
 */

/** How much gzip is inflated at a time: NULs shrink a thousandfold, so that this may become 16 MB. */
const GZIP_BYTES = 16 * 1024;

/** Stands where gzip breaks off. */
export const DAMAGED = Symbol("damaged");

/**
 * What is in a gzip file, member by member (`cat a.gz b.gz` and `gzip >>` make several). Zeros around members are
 * padding. After damage the next member is sought. What `createGunzip` does is not enough: it loses
 * its last output when garbage follows, and ignores a member after zeros.
 */
export async function* gunzipped(file: Deno.FsFile): AsyncGenerator<Uint8Array | typeof DAMAGED, void> {
  const buffer = new Uint8Array(GZIP_BYTES);
  for (let at = await seek(file, buffer, 0, isPaddingEnd); at >= 0;) {
    const end = yield* inflated(file, buffer, at);
    if (end < 0) yield DAMAGED;
    at = end < 0 ? await seek(file, buffer, at + 1, isMember) : await seek(file, buffer, end, isPaddingEnd);
  }
}

/** Fills as much of a buffer as the file has from this place on. */
async function readAt(file: Deno.FsFile, buffer: Uint8Array, at: number): Promise<Uint8Array> {
  await file.seek(at, Deno.SeekMode.Start);
  let filled = 0;
  for (let count; (count = await readPatiently(file, buffer.subarray(filled))) !== null && count > 0;) filled += count;
  return buffer.subarray(0, filled);
}

/** The next place in a file where this is true of the next four bytes, or -1. */
async function seek(
  file: Deno.FsFile,
  buffer: Uint8Array,
  from: number,
  isThere: (bytes: Uint8Array, at: number) => boolean,
): Promise<number> {
  for (;;) {
    const bytes = await readAt(file, buffer, from);
    for (let at = 0; at < bytes.length; at++) if (isThere(bytes, at)) return from + at;
    if (bytes.length < buffer.length) return -1;
    // The last three bytes may be the start of what is sought.
    from += bytes.length - 3;
  }
}

function isPaddingEnd(bytes: Uint8Array, at: number): boolean {
  return bytes[at] !== 0;
}

/** Whether a gzip member starts here: the magic number, "deflate", and none of the reserved flags. */
function isMember(bytes: Uint8Array, at: number): boolean {
  return bytes[at] === 0x1f && bytes[at + 1] === 0x8b && bytes[at + 2] === 8 && bytes[at + 3]! < 0x20;
}

/** How long a member's header is (RFC 1952, 2.3), or -1 where there is none. */
function headerLength(bytes: Uint8Array): number {
  if (!isMember(bytes, 0)) return -1;
  const flags = bytes[3]!;
  let length = 10;
  if (flags & 0x04) length += 2 + bytes[10]! + 256 * bytes[11]!;
  for (const text of [0x08, 0x10]) {
    if (!(flags & text)) continue;
    const end = bytes.indexOf(0, length);
    if (end < 0) return -1;
    length = end + 1;
  }
  if (flags & 0x02) length += 2;
  return length <= bytes.length ? length : -1;
}

/** Inflates the member that starts here and gives its end, or -1 where it is cut short or damaged. */
async function* inflated(file: Deno.FsFile, buffer: Uint8Array, start: number): AsyncGenerator<Uint8Array, number> {
  const header = headerLength(await readAt(file, buffer, start));
  if (header < 0) return -1;
  // Not imported above: it would slow the start of every agent down, and few logs are gzipped.
  const { crc32, createInflateRaw } = await import("node:zlib");
  const inflater = createInflateRaw();
  const chunks: Uint8Array[] = [];
  let failed = false;
  inflater.on("data", (chunk: Uint8Array) => chunks.push(chunk));
  inflater.on("error", () => failed = true);
  let checksum = 0, size = 0;
  try {
    for (let at = start + header, bytes; (bytes = await readAt(file, buffer, at)).length > 0;) {
      await new Promise<void>((done) => inflater.write(bytes, () => done()));
      for (const chunk of chunks.splice(0)) {
        checksum = crc32(chunk, checksum);
        size = (size + chunk.length) % 2 ** 32;
        yield chunk;
      }
      if (failed) return -1;
      const all = at + bytes.length;
      at = start + header + inflater.bytesWritten;
      // The inflater leaves alone what is not its own: checksum, size, next member.
      if (at < all) return await hasTrailer(file, at, checksum, size) ? at + TRAILER_BYTES : -1;
    }
    return -1;
  } finally {
    inflater.destroy();
  }
}

const TRAILER_BYTES = 8;

/** Whether the end of a member confirms what came out of it. */
async function hasTrailer(file: Deno.FsFile, at: number, checksum: number, size: number): Promise<boolean> {
  const trailer = await readAt(file, new Uint8Array(TRAILER_BYTES), at);
  if (trailer.length < TRAILER_BYTES) return false;
  const view = new DataView(trailer.buffer);
  return view.getUint32(0, true) === checksum && view.getUint32(4, true) === size;
}

/** Reads patiently: on Windows nobody can read what an appender has locked, for as long as it writes. */
export async function readPatiently(file: Deno.FsFile, buffer: Uint8Array): Promise<number | null> {
  for (const pause of READ_PAUSES_MS) {
    try {
      return await file.read(buffer);
    } catch {
      await new Promise((done) => setTimeout(done, pause));
    }
  }
  return await file.read(buffer);
}

/** How long to wait before a failed read is tried again. */
const READ_PAUSES_MS = [20, 50, 100];
