// Puts messages into a queue: bin/producer jobs one two three
package main

import (
	"fmt"
	"os"

	"example.com/stafett-examples/client"
	pb "example.com/stafett-examples/stafett/v1"
)

func main() {
	args := client.Args("QUEUE", "TEXT")
	conn := client.Connect()
	defer conn.Close()
	ctx, cancel := client.Deadline()
	defer cancel()
	request := &pb.EnqueueBatchRequest{Queue: args[0]}
	for _, text := range args[1:] {
		request.Messages = append(request.Messages, &pb.Message{Payload: []byte(text)})
	}
	answer, err := pb.NewQueueServiceClient(conn).EnqueueBatch(ctx, request)
	if err != nil {
		client.Fail(err)
	}
	// Each message has an outcome of its own: a full queue may take some of them.
	stored := 0
	for index, result := range answer.Results {
		if refused := result.GetError(); refused != nil {
			fmt.Fprintf(os.Stderr, "%s was refused: %s\n", args[1+index], refused.Message)
		} else {
			stored++
		}
	}
	fmt.Printf("stored %d messages\n", stored)
	if stored < len(answer.Results) {
		os.Exit(1)
	}
}
