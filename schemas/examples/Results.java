// Read what has become of your documents: one a line, as DOCUMENT_ID, OUTCOME, REASON and TITLE with tabs between
// them. Java 11 or newer, no build: put kafka-clients and avro, with what they need, into jars/.
//
//   java -cp 'jars/*' Results.java localhost:9092 docsum.summaries ../summary_result.v1.avsc
//
// Where docsum uses a schema registry, its address is one more argument.
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.File;
import java.io.PrintStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import org.apache.avro.Schema;
import org.apache.avro.generic.GenericData;
import org.apache.avro.generic.GenericDatumReader;
import org.apache.avro.generic.GenericRecord;
import org.apache.avro.io.DecoderFactory;
import org.apache.avro.message.BinaryMessageDecoder;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.StringDeserializer;

public final class Results {
    private final Schema schema;
    private final String registry;
    private final BinaryMessageDecoder<GenericRecord> singleObject;
    private final Map<Integer, Schema> registered = new HashMap<>();

    Results(Schema schema, String registry) {
        this.schema = schema;
        this.registry = registry;
        this.singleObject = new BinaryMessageDecoder<>(GenericData.get(), schema);
    }

    public static void main(String[] arguments) throws Exception {
        Schema schema = new Schema.Parser().parse(new File(arguments[2]));
        Results results = new Results(schema, arguments.length > 3 ? arguments[3] : "");
        Map<String, String> versions = new HashMap<>();
        Map<String, GenericRecord> newest = new TreeMap<>();
        for (ConsumerRecord<String, byte[]> record : all(arguments[0], arguments[1])) {
            byte[] header = record.headers().lastHeader("docsum-version").value();
            String version = new String(header, StandardCharsets.US_ASCII);
            if (version.compareTo(versions.getOrDefault(record.key(), "")) < 0) {
                continue; // an older record may come last
            }
            versions.put(record.key(), version);
            // A null value: the document is deleted.
            newest.put(record.key(), record.value() == null ? null : results.decode(record.value()));
        }
        var out = new PrintStream(System.out, true, StandardCharsets.UTF_8);
        newest.forEach((id, found) -> {
            if (found != null) {
                Object title = found.get("title") == null ? "" : found.get("title");
                out.println(id + "\t" + found.get("outcome") + "\t" + found.get("reason") + "\t" + title);
            }
        });
    }

    GenericRecord decode(byte[] value) throws Exception {
        if (value[0] != 0) {
            return singleObject.decode(value);
        }
        Schema writer = writerOf(ByteBuffer.wrap(value, 1, 4).getInt());
        var decoder = DecoderFactory.get().binaryDecoder(value, 5, value.length - 5, null);
        return new GenericDatumReader<GenericRecord>(writer, schema).read(null, decoder);
    }

    private Schema writerOf(int id) throws Exception {
        Schema known = registered.get(id);
        if (known == null) {
            var request = HttpRequest.newBuilder(URI.create(registry + "/schemas/ids/" + id)).build();
            var answer = HttpClient.newHttpClient().send(request, BodyHandlers.ofString());
            if (answer.statusCode() != 200) {
                throw new IllegalStateException("The registry answers " + answer.statusCode() + ".");
            }
            String text = new ObjectMapper().readTree(answer.body()).get("schema").asText();
            known = new Schema.Parser().parse(text);
            registered.put(id, known);
        }
        return known;
    }

    /** All that the topic holds now; follow it with subscribe and a group of your own instead. */
    static List<ConsumerRecord<String, byte[]>> all(String servers, String topic) {
        List<ConsumerRecord<String, byte[]>> found = new ArrayList<>();
        Map<String, Object> config = Map.of("bootstrap.servers", servers);
        try (var consumer =
                new KafkaConsumer<>(config, new StringDeserializer(), new ByteArrayDeserializer())) {
            List<TopicPartition> places = new ArrayList<>();
            consumer.partitionsFor(topic).forEach(each -> places.add(new TopicPartition(topic, each.partition())));
            consumer.assign(places);
            consumer.seekToBeginning(places);
            Map<TopicPartition, Long> ends = consumer.endOffsets(places);
            while (places.stream().anyMatch(place -> consumer.position(place) < ends.get(place))) {
                consumer.poll(Duration.ofMillis(200)).forEach(found::add);
            }
        }
        return found;
    }
}
