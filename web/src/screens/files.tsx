import { Page } from "../ui";

export default function Files() {
  return <Page title="Files" />;
}
