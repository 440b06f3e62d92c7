// Figures and times in words. Null and undefined are a dash.
type Maybe = number | null | undefined;
const DASH = "–";
const known = (value: Maybe): value is number => value !== null && value !== undefined;

const plain = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const three = new Intl.NumberFormat("en", { minimumSignificantDigits: 3, maximumSignificantDigits: 3 });
const date = new Intl.DateTimeFormat("en", { dateStyle: "medium", timeStyle: "medium" });
const past = new Intl.RelativeTimeFormat("en", { numeric: "auto", style: "narrow" });

/** 12,345.68 */
export const number = (value: Maybe): string => (known(value) ? plain.format(value) : DASH);
/** 12.3K */
export const compact = (value: Maybe): string => (known(value) ? short.format(value) : DASH);
/** A loss to three significant digits; small ones as 1.23e-5. */
export function loss(value: Maybe): string {
  if (!known(value)) return DASH;
  if (!Number.isFinite(value)) return "not a number";
  return value !== 0 && Math.abs(value) < 0.001 ? value.toExponential(2) : three.format(value);
}
/** A share as 12.3 %. */
export const percent = (share: Maybe, digits = 1): string => (known(share) ? `${(100 * share).toFixed(digits)} %` : DASH);
/** A learning rate or the like: 0.0002, 1.5e-5. */
export const rate = (value: Maybe): string =>
  known(value) ? (value !== 0 && Math.abs(value) < 1e-4 ? value.toExponential() : String(Number(value.toPrecision(4)))) : DASH;

/** 12.3 MB (powers of 1,000). */
export function bytes(value: Maybe): string {
  if (!known(value)) return DASH;
  const power = Math.min(4, Math.max(0, Math.floor(Math.log10(Math.max(1, value)) / 3)));
  const scaled = value / 1000 ** power;
  return `${power && scaled < 100 ? scaled.toFixed(1) : Math.round(scaled)} ${["bytes", "kB", "MB", "GB", "TB"][power]}`;
}

/** 1 h 5 min, 2 min 3 s, 4 s. */
export function duration(seconds: Maybe): string {
  if (!known(seconds)) return DASH;
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 86_400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86_400)} d ${Math.floor((whole % 86_400) / 3600)} h`;
}

/** Unix seconds as 3 min. ago, in 2 hr. */
export function ago(at: Maybe, now = Date.now() / 1000): string {
  if (!known(at)) return DASH;
  const seconds = at - now;
  const size = Math.abs(seconds);
  if (size < 10) return "just now";
  if (size < 60) return past.format(Math.round(seconds), "second");
  if (size < 3600) return past.format(Math.round(seconds / 60), "minute");
  if (size < 86_400) return past.format(Math.round(seconds / 3600), "hour");
  return past.format(Math.round(seconds / 86_400), "day");
}

/** Unix seconds as Jan 2, 2026, 3:04:05 PM. */
export const dateTime = (at: Maybe): string => (known(at) ? date.format(at * 1000) : DASH);
/** One of one, many of more: plural(2, "row") is "2 rows". */
export const plural = (count: number, word: string): string => `${number(count)} ${word}${count === 1 ? "" : "s"}`;
/** A status or severity as people read it. */
export const words = (name: string): string => name.replaceAll("_", " ").replace(/^./, (first) => first.toUpperCase());
