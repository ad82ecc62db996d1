/**
 * Reads gzip files of several members, with padding, cut short.
 * @module
 */
import { isInUse } from "../errors.ts";

/** How much gzip is inflated at a time. NULs shrink a thousandfold, so this may become 16 MB. */
const GZIP_BYTES = 16 * 1024;
const TRAILER_BYTES = 8;
/** How long a read is tried again while another process has locked the log, and how long the pauses are. */
const LOCK_TIMEOUT_MS = 10_000;
const LOCK_PAUSE_MS = 5;

/**
 * Yields the content of a gzip file. Returns whether it was complete: false where a member is cut short or damaged, or
 * is followed by anything but padding and members (`cat a.gz b.gz` and `gzip >>` make several).
 *
 * `createGunzip` does not suffice: it loses its last output when garbage follows, and ignores a member after zeros.
 */
export async function* gunzip(file: Deno.FsFile): AsyncGenerator<Uint8Array, boolean> {
  // Imported here, because it takes time that agents at their start do not have.
  const { crc32, createInflateRaw } = await import("node:zlib");
  const buffer = new Uint8Array(GZIP_BYTES);
  for (let at = 0, bytes; (bytes = await readAt(file, buffer, at)).length > 0;) {
    const padding = bytes.findIndex((byte) => byte !== 0);
    if (padding !== 0) {
      at += padding < 0 ? bytes.length : padding;
      continue;
    }
    const header = headerLength(bytes);
    if (header < 0) return false;
    at += header;
    const inflater = createInflateRaw();
    const chunks: Uint8Array[] = [];
    let hasFailed = false;
    inflater.on("data", (chunk: Uint8Array) => chunks.push(chunk));
    inflater.on("error", () => hasFailed = true);
    let checksum = 0, size = 0;
    try {
      for (let start = at, end = at; at === end;) {
        bytes = await readAt(file, buffer, at);
        if (bytes.length === 0) return false;
        await new Promise<void>((done) => inflater.write(bytes!, () => done()));
        for (const chunk of chunks.splice(0)) {
          checksum = crc32(chunk, checksum);
          size = (size + chunk.length) % 2 ** 32;
          yield chunk;
        }
        if (hasFailed) return false;
        end = at + bytes.length;
        // The inflater leaves the bytes after the member alone.
        at = start + inflater.bytesWritten;
      }
    } finally {
      inflater.destroy();
    }
    const trailer = await readAt(file, buffer.subarray(0, TRAILER_BYTES), at);
    const view = new DataView(trailer.buffer);
    if (trailer.length < TRAILER_BYTES || view.getUint32(0, true) !== checksum || view.getUint32(4, true) !== size) {
      return false;
    }
    at += TRAILER_BYTES;
  }
  return true;
}

/** The length of a member's header (RFC 1952, 2.3), or -1 where there is none. */
function headerLength(bytes: Uint8Array): number {
  const flags = bytes[3]!;
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b || bytes[2] !== 8 || flags >= 0x20) return -1;
  let length = 10;
  if (flags & 0x04) length += 2 + bytes[10]! + 256 * bytes[11]!;
  for (const text of [0x08, 0x10]) {
    if (flags & text) length = bytes.indexOf(0, length) + 1 || Infinity;
  }
  if (flags & 0x02) length += 2;
  return length <= bytes.length ? length : -1;
}

/** Fills as much of a buffer as the file has from this place on. */
async function readAt(file: Deno.FsFile, buffer: Uint8Array, at: number): Promise<Uint8Array> {
  await file.seek(at, Deno.SeekMode.Start);
  let filled = 0;
  for (let count; (count = await readWithRetry(file, buffer.subarray(filled))) !== null && count > 0;) filled += count;
  return buffer.subarray(0, filled);
}

/** On Windows nobody can read what an appender has locked, which is most of the time where an agent awaits each event. */
export async function readWithRetry(file: Deno.FsFile, buffer: Uint8Array): Promise<number | null> {
  for (const deadline = performance.now() + LOCK_TIMEOUT_MS;;) {
    try {
      return await file.read(buffer);
    } catch (error) {
      if (!isInUse(error) || performance.now() > deadline) throw error;
      await new Promise((done) => setTimeout(done, LOCK_PAUSE_MS));
    }
  }
}
