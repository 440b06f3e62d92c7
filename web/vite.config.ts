import { defineConfig } from "vite";

const api = process.env.TUNESMITH_URL ?? "http://127.0.0.1:8321";

// The server's Content-Security-Policy allows no inline script or style and no data: font, so nothing is inlined.
export default defineConfig({
  build: {
    outDir: "../tunesmith/dashboard/dist",
    emptyOutDir: true,
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    target: "es2022",
    cssTarget: ["chrome123", "firefox120", "safari17.5"],
  },
  server: { proxy: { "/api": api, "/v1": api, "/login": api } },
});
