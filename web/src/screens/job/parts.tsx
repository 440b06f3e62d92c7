// What the job's page and the comparison share.
import type { ComponentChildren } from "preact";
import type { Metric, MetricData } from "../../api/client";
import { Table } from "../../ui";
import { loss, number, percent, rate } from "../../ui/format";
import "./job.css";

export const tryLink = (...models: string[]): string => `/try?models=${models.map(encodeURIComponent).join()}`;

/** A value of unknown shape in few words. */
export function told(value: unknown): string {
  if (typeof value === "number") return Number.isInteger(value) ? number(value) : rate(value);
  if (Array.isArray(value)) return value.map(told).join(", ");
  if (value && typeof value === "object") return Object.entries(value).map(([name, inner]) => `${name} ${told(inner)}`).join(", ");
  return String(value ?? "none");
}

/** The full evaluations of trained weights, the best by loss or accuracy first. */
function ranked(points: readonly Metric[], by: unknown): MetricData[] {
  const of = (data: MetricData) => (by === "accuracy" ? -(data.full_valid_mean_token_accuracy ?? 0) : data.full_valid_loss!);
  const full = points.flatMap(({ data }) => (data.step > 0 && data.full_valid_loss != null ? [data] : []));
  return by === "last" ? full.toReversed() : full.sort((a, b) => of(a) - of(b));
}
export const best = (points: readonly Metric[]): MetricData | undefined => ranked(points, "full_valid_loss")[0];

/** The base model's full evaluation, and that of the weights that become the model. */
export const gained = (points: readonly Metric[], select_by: unknown) => ({ base: points[0]?.data.step === 0 ? points[0].data : undefined, now: ranked(points, select_by ?? "last")[0] });

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

export const Grid = ({ rows, ...rest }: { label: string; head: ComponentChildren[]; class?: string; rows: ComponentChildren[][] }) => (
  <Table {...rest}>{rows.map((cells, row) => <tr key={row} role="row">{cells.map((cell, index) => <td key={index} role="cell">{cell}</td>)}</tr>)}</Table>
);

export const Facts = ({ of }: { of: [name: string, value: ComponentChildren][] }) => (
  <dl class="facts small">{of.flatMap(([name, value], index) => [<dt key={index}>{name}</dt>, <dd key={-index - 1}>{value}</dd>])}</dl>
);

export const Fold = ({ title, children }: { title: ComponentChildren; children: ComponentChildren }) => <details><summary>{title}</summary>{children}</details>;
