export * from "./basic";
export * from "./dialog";
export * from "./form";
export * from "./load";
export * from "./theme";
