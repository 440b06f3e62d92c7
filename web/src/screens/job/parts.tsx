// What the job's page and the comparison share.
import type { Metric, MetricData } from "../../api/client";
import { number, rate } from "../../ui/format";
import "./job.css";

export const tryLink = (...models: string[]): string => `/try?models=${models.map(encodeURIComponent).join()}`;

/** A value of unknown shape in few words; a seed is a number but no count. */
export function told(value: unknown, name = ""): string {
  if (typeof value === "number" && name !== "seed") return Number.isInteger(value) ? number(value) : rate(value);
  if (Array.isArray(value)) return value.map((one) => told(one)).join(", ");
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
