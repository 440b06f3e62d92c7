// Light or dark: the system's unless the reader chose. public/theme.js does the same before the first paint.
import { signal } from "@preact/signals";

type Theme = "light" | "dark";
const system = matchMedia("(prefers-color-scheme: dark)");
const chosen = (): Theme | undefined => document.documentElement.dataset.theme as Theme | undefined;
const current = (): Theme => chosen() ?? (system.matches ? "dark" : "light");

/** The theme on screen; what draws on a canvas reads it, to be drawn again. */
export const theme = signal<Theme>(current());
system.addEventListener("change", () => (theme.value = current()));

export function toggleTheme(): void {
  const next = theme.peek() === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  try {
    localStorage.setItem("theme", next);
  } catch {
    // a browser that keeps nothing: the choice lasts as long as the page
  }
  theme.value = next;
}
