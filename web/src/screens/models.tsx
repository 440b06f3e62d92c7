import { Page } from "../ui";

export default function Models() {
  return <Page title="Models" />;
}
