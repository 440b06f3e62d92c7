import { Page } from "../ui";

export default function Try() {
  return <Page title="Try" />;
}
