/** Records what waits when the process ends. @module */

const unfinished = new Set<() => void>();
let isListening = false;

/**
 * Calls a function when the process ends by `Deno.exit`, by itself, or by an uncaught error. Nothing asynchronous
 * continues then. The agent can still prevent the end by an uncaught error, so the function must not end anything.
 */
export function callAtExit(record: () => void): void {
  unfinished.add(record);
  if (isListening) return;
  isListening = true;
  // An uncaught error ends the process without `unload`.
  for (const event of ["unload", "error", "unhandledrejection"]) globalThis.addEventListener(event, callAll);
}

/** Does not call a function at the end of the process any more. */
export function cancelAtExit(record: () => void): void {
  unfinished.delete(record);
}

function callAll(event: Event): void {
  if (!event.defaultPrevented) { for (const record of [...unfinished]) record(); }
}
