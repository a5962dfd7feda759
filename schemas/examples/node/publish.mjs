// Announce documents from Node: one a line on standard input, with tabs between its fields. JSON, by kafkajs.
//
// DOCUMENT_ID, URI and, if you know it, SOURCE_VERSION. A line without a URI says that the document is gone.
//
//   npm ci
//   printf 'invoice-42\ts3://invoices/42.pdf\tetag-1\n' | node publish.mjs localhost:9092 docsum.documents
import { readFileSync } from "node:fs";
import { Kafka, Partitioners, logLevel } from "kafkajs";

const [servers, topic] = process.argv.slice(2);
const kafka = new Kafka({ clientId: "publish", brokers: servers.split(","), logLevel: logLevel.ERROR });
const producer = kafka.producer({
  createPartitioner: Partitioners.DefaultPartitioner, // murmur2, as Java does; not the legacy one
  idempotent: true,
});

const messages = readFileSync(0, "utf8")
  .split("\n")
  .filter((line) => line !== "")
  .map((line) => {
    const [documentId, uri, sourceVersion = ""] = line.split("\t");
    const event = { document_id: documentId, uri, source_version: sourceVersion };
    return { key: documentId, value: uri ? JSON.stringify(event) : null };
  });

await producer.connect();
try {
  await producer.send({ topic, messages, acks: -1 });
} finally {
  await producer.disconnect();
}
