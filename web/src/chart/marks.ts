// What stands on the plots beside the lines: findings' bands, epoch borders, checkpoints, the base model's level.
import { effect } from "@preact/signals";
import type uPlot from "uplot";
import { theme } from "../ui";
import type { Drawing, Panel } from "./plot";

const known = new Map<string, string>();
effect(() => {
  theme.value;
  known.clear();
});

/** A colour of styles.css as a canvas understands it, in the theme of now: ink("--train"). */
export function ink(token: string): string {
  if (!known.has(token)) {
    const probe = document.createElement("i");
    probe.style.color = `var(${token})`;
    document.body.append(probe);
    known.set(token, getComputedStyle(probe).color);
    probe.remove();
  }
  return known.get(token)!;
}

/** uPlot scales whole pixels only. */
export const FONT = "12px system-ui, sans-serif";
/** Below the ticks of the first plot, where the epochs' names stand; room between borders and between names, in CSS pixels. */
export const NAMES = 14;
const [BORDER_ROOM, NAME_ROOM] = [14, 64];

/** Draw in CSS pixels from the plot's left upper corner. */
function drawing(u: uPlot, draw: (ctx: CanvasRenderingContext2D, width: number, height: number) => void): void {
  const scale = u.ctx.canvas.width / u.width;
  u.ctx.save();
  u.ctx.setTransform(scale, 0, 0, scale, u.bbox.left, u.bbox.top);
  u.ctx.font = FONT;
  u.ctx.textBaseline = "alphabetic";
  u.ctx.lineWidth = 1;
  draw(u.ctx, u.bbox.width / scale, u.bbox.height / scale);
  u.ctx.restore();
}

function line(ctx: CanvasRenderingContext2D, dash: number[], x0: number, y0: number, x1: number, y1: number): void {
  ctx.setLineDash(dash);
  ctx.beginPath();
  ctx.moveTo(x0, y0);
  ctx.lineTo(x1, y1);
  ctx.stroke();
}

/** Bands and epoch borders, under the lines. */
export function drawUnder(u: uPlot, { axis, bands = [], borders = [] }: Drawing, panel: Panel, chosen: string | null): void {
  drawing(u, (ctx, width, height) => {
    const place = (x: number) => Math.max(0, Math.min(width, u.valToPos(x, "x")));
    for (const { code, from, to, color } of bands) {
      const [left, strong] = [place(from), code === chosen];
      ctx.fillStyle = ink(color);
      for (const [alpha, tall] of strong ? ([[0.18, height], [0.9, 3]] as const) : ([[0.06, height], [0.3, 2]] as const)) {
        ctx.globalAlpha = alpha;
        ctx.fillRect(left, 0, place(to) - left, tall);
      }
    }
    [ctx.strokeStyle, ctx.fillStyle, ctx.textAlign] = [ink("--edge"), ink("--muted"), "center"];
    let [border, name] = [-Infinity, -Infinity];
    for (const { x, epoch } of borders) {
      const left = u.valToPos(x, "x");
      if (left - border < BORDER_ROOM) continue;
      border = left;
      const named = !panel.share && axis !== "epoch" && left - name >= NAME_ROOM;
      if (named) name = left;
      if (left < 0 || left > width) continue;
      ctx.globalAlpha = 0.45;
      line(ctx, [2, 4], left, 0, left, height);
      ctx.globalAlpha = 1;
      if (named) ctx.fillText(`epoch ${epoch}`, left, height + 22 + NAMES);
    }
  });
}

/** The base model's level and checkpoints with their names, over the lines. */
export function drawOver(u: uPlot, { marks = [], xs }: Drawing, { level }: Panel): void {
  drawing(u, (ctx, width, height) => {
    const y = level && xs.length ? Math.round(u.valToPos(level.value, "y")) + 0.5 : -1;
    if (level && y >= 0 && y <= height) {
      [ctx.strokeStyle, ctx.textAlign] = [ink("--base"), "right"];
      line(ctx, [6, 4], 0, y, width, y);
      // Above the line or, at the top of the plot, below it.
      const [size, top] = [ctx.measureText(level.label).width + 8, y < 24 ? y + 2 : y - 18];
      ctx.fillStyle = ink("--bg");
      ctx.fillRect(width - size - 4, top, size, 16);
      ctx.fillStyle = ink("--base");
      ctx.fillText(level.label, width - 8, top + 12);
    }
    ctx.textAlign = "left";
    // From right to left, each name left of the one before, so that none lies on another.
    let end = width;
    for (const { x, label, color, dash } of marks.toSorted((a, b) => b.x - a.x)) {
      const [left, size] = [u.valToPos(x, "x"), ctx.measureText(label).width];
      if (left < -1 || left > width + 1) continue;
      ctx.strokeStyle = ctx.fillStyle = ink(color);
      line(ctx, dash, left, 0, left, height);
      const from = Math.max(0, Math.min(left - size / 2, end - size));
      ctx.fillText(label, from, -6);
      end = from - 12;
    }
  });
}
