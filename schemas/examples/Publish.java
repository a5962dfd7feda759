// Announce documents from Java: one a line on standard input, with tabs between its fields.
//
// DOCUMENT_ID, URI and, if you know it, SOURCE_VERSION. A line without a URI says that the document is gone.
// Java 11 or newer, no build: put kafka-clients and avro, with what they need, into jars/.
//
//   printf 'invoice-42\ts3://invoices/42.pdf\tetag-1\n' |
//     java -cp 'jars/*' Publish.java localhost:9092 docsum.documents ../document_reference.v1.avsc
//
// With --json in place of the schema's file the events are JSON.
import java.io.BufferedReader;
import java.io.File;
import java.io.InputStreamReader;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.time.Instant;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.Future;
import org.apache.avro.Schema;
import org.apache.avro.generic.GenericData;
import org.apache.avro.generic.GenericRecord;
import org.apache.avro.generic.GenericRecordBuilder;
import org.apache.avro.message.BinaryMessageEncoder;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.serialization.ByteArraySerializer;

public final class Publish {
    interface Encoder {
        byte[] encode(String documentId, String uri, String sourceVersion) throws Exception;
    }

    public static void main(String[] arguments) throws Exception {
        String servers = arguments[0];
        String topic = arguments[1];
        Encoder encoder = arguments[2].equals("--json") ? Publish::json : avro(new File(arguments[2]));

        // Keys are placed by murmur2, Java's default; acknowledgements of all replicas are the default, too.
        Map<String, Object> config = Map.of("bootstrap.servers", servers, "enable.idempotence", true);
        List<Future<RecordMetadata>> sent = new ArrayList<>();
        try (var producer =
                new KafkaProducer<>(config, new ByteArraySerializer(), new ByteArraySerializer())) {
            var lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
            for (String line = lines.readLine(); line != null; line = lines.readLine()) {
                String[] fields = line.split("\t");
                byte[] key = fields[0].getBytes(StandardCharsets.UTF_8);
                byte[] value = fields.length < 2
                        ? null
                        : encoder.encode(fields[0], fields[1], fields.length > 2 ? fields[2] : "");
                sent.add(producer.send(new ProducerRecord<>(topic, key, value)));
            }
        }
        for (var each : sent) {
            each.get(); // throws what went wrong
        }
    }

    static Encoder avro(File file) throws Exception {
        Schema schema = new Schema.Parser().parse(file);
        var encoder = new BinaryMessageEncoder<GenericRecord>(GenericData.get(), schema); // writes C3 01 itself
        return (documentId, uri, sourceVersion) -> {
            GenericRecord event = new GenericRecordBuilder(schema)
                    .set("event_id", UUID.randomUUID().toString()) // keep it if you publish the same again
                    .set("document_id", documentId)
                    .set("uri", uri)
                    .set("source_version", sourceVersion)
                    .set("occurred_at", Instant.now().toEpochMilli()) // when you saw the source like this
                    .build();
            ByteBuffer encoded = encoder.encode(event);
            byte[] value = new byte[encoded.remaining()];
            encoded.get(value);
            return value;
        };
    }

    static byte[] json(String documentId, String uri, String sourceVersion) {
        String text = "{\"document_id\": " + quoted(documentId) + ", \"uri\": " + quoted(uri)
                + ", \"source_version\": " + quoted(sourceVersion) + "}";
        return text.getBytes(StandardCharsets.UTF_8);
    }

    /** Enough for ids and addresses, which have no control characters; use your JSON library. */
    static String quoted(String text) {
        return '"' + text.replace("\\", "\\\\").replace("\"", "\\\"") + '"';
    }
}
