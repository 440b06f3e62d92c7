// The parts every screen is made of.
import { signal } from "@preact/signals";
import type { ComponentChildren, JSX } from "preact";
import { useEffect, useId, useRef, useState } from "preact/hooks";
import type { Severity, Status } from "../api/client";
import { Link, visits } from "../router";
import { announce } from "./dialog";
import { ago, dateTime, loss, percent, words } from "./format";

type Children = { children?: ComponentChildren };
type Kind = "plain" | "primary" | "danger" | "ghost";

interface PageProps extends Children {
  title: string;
  /** In place of the title as heading, where it has more than words. */
  heading?: ComponentChildren;
  actions?: ComponentChildren;
  /** Lets the page take the whole width. */
  wide?: boolean;
}

/** A screen: its heading takes the focus after a navigation, and its title is the window's. */
export function Page({ title, heading, actions, wide, children }: PageProps) {
  const ref = useRef<HTMLHeadingElement>(null);
  useEffect(() => {
    document.title = `${title} · Tunesmith`;
  }, [title]);
  useEffect(() => {
    if (visits) ref.current?.focus({ preventScroll: true });
  }, []);
  return (
    <main id="main" class={wide ? "page wide" : "page"}>
      <header class="page-head">
        <h1 ref={ref} tabIndex={-1}>{heading ?? title}</h1>
        {actions && <div class="actions">{actions}</div>}
      </header>
      {children}
    </main>
  );
}

/** A bordered part of a page under its heading. */
export function Card({ title, actions, children, class: extra }: Children & { title?: ComponentChildren; actions?: ComponentChildren; class?: string }) {
  const id = useId();
  return (
    <section class={`card ${extra ?? ""}`} aria-labelledby={title ? id : undefined}>
      {(title || actions) && (
        <header class="card-head">
          {title && <h2 id={id}>{title}</h2>}
          {actions && <div class="actions">{actions}</div>}
        </header>
      )}
      {children}
    </section>
  );
}

type ButtonProps = Omit<JSX.IntrinsicElements["button"], "onClick" | "ref"> & { kind?: Kind; small?: boolean; onClick?: () => unknown };

/** A button; while the promise of its click is open it is busy and cannot be pressed again. */
export function Button({ kind = "plain", small, onClick, disabled, children, class: extra, ...rest }: ButtonProps) {
  const [busy, setBusy] = useState(false);
  const clicked = useRef(false); // two clicks may come before the first is drawn
  const click = async () => {
    const under = clicked.current ? null : onClick?.();
    if (!(under instanceof Promise)) return;
    setBusy((clicked.current = true));
    await under.finally(() => setBusy((clicked.current = false)));
  };
  return (
    <button type="button" {...rest} class={`button ${kind} ${small ? "small" : ""} ${extra ?? ""}`} disabled={disabled || busy} aria-busy={busy} onClick={click}>
      {children}
    </button>
  );
}

export function LinkButton({ to, kind = "plain", small, children }: Children & { to: string; kind?: Kind; small?: boolean }) {
  return <Link to={to} class={`button ${kind} ${small ? "small" : ""}`}>{children}</Link>;
}

const TONES: Record<Status | Severity, string> = {
  validating_files: "blue",
  queued: "grey",
  running: "blue",
  paused: "amber",
  succeeded: "green",
  failed: "red",
  cancelled: "grey",
  info: "grey",
  warning: "amber",
  critical: "red",
};

/** A status or severity by word and colour; `children` says other words. */
export function Badge({ of, children }: Children & { of: Status | Severity }) {
  return <span class={`badge ${TONES[of]} ${of === "running" ? "alive" : ""}`}>{children ?? words(of)}</span>;
}

/** What went wrong, in place; `retry` offers to try again. */
export function ErrorNote({ error, retry }: { error: Error | string; retry?: () => unknown }) {
  return (
    <div class="note bad" role="alert">
      <p>{typeof error === "string" ? error : error.message}</p>
      {retry && <Button small onClick={retry}>Try again</Button>}
    </div>
  );
}

/** A remark in a box. */
export function Note({ severity = "info", children }: Children & { severity?: Severity }) {
  return <div class={`note ${TONES[severity]}`}>{children}</div>;
}

export function Empty({ title, children }: Children & { title: string }) {
  return (
    <div class="empty">
      <h2>{title}</h2>
      {children}
    </div>
  );
}

/** Grey lines as high as what will be there. */
export function Skeleton({ height = 120 }: { height?: number }) {
  return <div class="skeleton" style={{ height: `${height}px` }}><span class="sr-only">Loading</span></div>;
}

interface TableProps extends Children {
  label: string;
  /** The cells of its head. */
  head: ComponentChildren[];
  /** What is shown is being loaded again. */
  busy?: boolean;
  class?: string;
}

/** A table in a region of its own that scrolls and can take the focus. */
export function Table({ label, head, busy = false, children, class: extra }: TableProps) {
  return (
    <div class={`table-scroll ${extra ?? ""}`} role="region" aria-label={label} aria-busy={busy} tabIndex={0}>
      <table role="table">
        <thead role="rowgroup">
          <tr role="row">{head.map((cell, index) => <th key={index} scope="col" role="columnheader">{cell}</th>)}</tr>
        </thead>
        <tbody role="rowgroup">{children}</tbody>
      </table>
    </div>
  );
}

/** A table of nothing but cells. */
export const Grid = ({ rows, ...rest }: Omit<TableProps, "children"> & { rows: ComponentChildren[][] }) => (
  <Table {...rest}>{rows.map((cells, row) => <tr key={row} role="row">{cells.map((cell, index) => <td key={index} role="cell">{cell}</td>)}</tr>)}</Table>
);

/** Names with their values. */
export const Facts = ({ of }: { of: [name: string, value: ComponentChildren][] }) => (
  <dl class="facts small">{of.flatMap(([name, value], index) => [<dt key={index}>{name}</dt>, <dd key={-index - 1}>{value}</dd>])}</dl>
);

export const Fold = ({ title, children }: { title: ComponentChildren; children: ComponentChildren }) => <details><summary>{title}</summary>{children}</details>;

/** Copies `text`; says so. */
export function Copy({ text, label = "Copy" }: { text: string | (() => string); label?: string }) {
  const [done, setDone] = useState(false);
  const copy = async () => {
    await navigator.clipboard.writeText(typeof text === "string" ? text : text());
    announce("Copied");
    setDone(true);
    setTimeout(() => setDone(false), 1500);
  };
  return <Button small onClick={copy}>{done ? "Copied" : label}</Button>;
}

/** Code to copy. */
export function Code({ text, label }: { text: string; label: string }) {
  return (
    <figure class="code">
      <figcaption>
        <span>{label}</span>
        <Copy text={text} />
      </figcaption>
      <pre tabIndex={0}>{text}</pre>
    </figure>
  );
}

const clock = signal(Date.now() / 1000);
setInterval(() => document.hidden || (clock.value = Date.now() / 1000), 10_000);

/** A time in Unix seconds, from now, with the date as its title. */
export function Time({ at }: { at: number }) {
  return <time dateTime={new Date(at * 1000).toISOString()} title={dateTime(at)}>{ago(at, Math.max(clock.value, Date.now() / 1000))}</time>;
}

/** A share from 0 to 1 as a bar; null is "under way". */
export function Progress({ share, label }: { share: number | null; label: string }) {
  const now = share === null ? {} : { "aria-valuenow": Math.round(100 * share) };
  return (
    <div class="progress" role="progressbar" aria-label={label} aria-valuemin={0} aria-valuemax={100} {...now}>
      <div class={share === null ? "waits" : ""} style={share === null ? {} : { width: `${100 * Math.min(1, share)}%` }} />
    </div>
  );
}

/** Text that ends in … where it does not fit; the whole is its title. */
export function Clip({ text, class: extra }: { text: string; class?: string }) {
  return <span class={`clip ${extra ?? ""}`} title={text}>{text}</span>;
}

/** From → to with the change, good or not. */
export function Change({ from, to, share = false }: { from: number | null | undefined; to: number | null | undefined; share?: boolean }) {
  const show = share ? percent : loss;
  if (from == null || to == null) return <>{from == null ? show(to) : `${show(from)} → –`}</>;
  const change = share ? 100 * (to - from) : (100 * (to - from)) / (from || 1);
  const tone = !change ? "muted" : change > 0 === share ? "good" : "worse";
  return (
    <>
      {show(from)} → {show(to)}{" "}
      <span class={`change ${tone}`}>
        <span aria-hidden="true">{change > 0 ? "▲" : "▼"} </span>
        <span class="sr-only">{change > 0 ? "higher by " : "lower by "}</span>
        {Math.abs(change).toFixed(Math.abs(change) < 10 || share ? 1 : 0)} {share ? "points" : "%"}
      </span>
    </>
  );
}
