"""The door to Kafka: records in and out, and what they are made of."""
