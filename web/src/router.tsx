// Path and query of the page as signals: every view's state is in its URL.
import { signal } from "@preact/signals";
import type { ComponentChildren } from "preact";

export const path = signal(location.pathname);
export const query = signal(new URLSearchParams(location.search));
/** Counts navigations, so that a page knows whether it is the first. */
export let visits = 0;

const WRITE_MS = 150;
let writing = 0;

function read(): void {
  clearTimeout(writing);
  writing = 0;
  visits++;
  query.value = new URLSearchParams(location.search);
  path.value = location.pathname;
}
addEventListener("popstate", read);

/** Go to a path of the app, with its query. */
export function navigate(to: string, { replace = false } = {}): void {
  write();
  history[replace ? "replaceState" : "pushState"](null, "", to);
  read();
  scrollTo(0, 0);
}

/** The value of one parameter of the query; a component that reads it follows it. */
export const useQuery = (name: string): string | null => query.value.get(name);

/** Change some parameters (null or "" takes one away). `push` makes the view before reachable by the back button. */
export function setQuery(changes: Record<string, string | number | null | undefined>, { push = false } = {}): void {
  const next = new URLSearchParams(query.peek());
  for (const [name, value] of Object.entries(changes)) {
    if (value === null || value === undefined || value === "") next.delete(name);
    else next.set(name, String(value));
  }
  if (next.toString() === query.peek().toString()) return;
  if (push) {
    write();
    history.pushState(null, "", address(next));
  } else {
    // Browsers bound how often an address may change; a slider changes it more often.
    clearTimeout(writing);
    writing = window.setTimeout(write, WRITE_MS);
  }
  query.value = next;
}

function write(): void {
  if (!writing) return;
  clearTimeout(writing);
  writing = 0;
  history.replaceState(null, "", address(query.peek()));
}

const address = (next: URLSearchParams): string => location.pathname + (next.size ? `?${next}` : "") + location.hash;

interface LinkProps {
  to: string;
  children?: ComponentChildren;
  class?: string;
  title?: string;
  "aria-label"?: string;
  "aria-current"?: "page" | undefined;
}

/** A link within the app; with a modifier key it is the browser's. */
export function Link({ to, children, ...rest }: LinkProps) {
  const follow = (event: MouseEvent) => {
    if (event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    navigate(to);
  };
  return <a {...rest} href={to} onClick={follow}>{children}</a>;
}
