// Publishes a message: bin/publisher room/1 "22 degrees"
package main

import (
	"fmt"

	"example.com/stafett-examples/client"
	pb "example.com/stafett-examples/stafett/v1"
)

func main() {
	args := client.Args("TOPIC", "TEXT")
	conn := client.Connect()
	defer conn.Close()
	ctx, cancel := client.Deadline()
	defer cancel()
	message := &pb.Message{Topic: args[0], Payload: []byte(args[1]), ContentType: "text/plain"}
	// The answer says that the message is on disk for everyone durable who takes it.
	answer, err := pb.NewPubSubServiceClient(conn).Publish(ctx, &pb.PublishRequest{Message: message})
	if err != nil {
		client.Fail(err)
	}
	fmt.Printf("published to %d subscribers and %d queues\n", answer.MatchedSubscribers, answer.MatchedQueues)
}
