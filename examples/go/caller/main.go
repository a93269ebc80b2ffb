// Calls a service, whoever serves it, over gRPC or MQTT: bin/caller text/upper hello
package main

import (
	"fmt"

	"example.com/stafett-examples/client"
	pb "example.com/stafett-examples/stafett/v1"
)

func main() {
	args := client.Args("SERVICE", "TEXT")
	conn := client.Connect()
	defer conn.Close()
	// The deadline of the RPC is that of the call; the responder is told of it.
	ctx, cancel := client.Deadline()
	defer cancel()
	answer, err := pb.NewCallServiceClient(conn).Call(ctx, &pb.CallRequest{
		Service: args[0],
		Request: &pb.Message{Payload: []byte(args[1])},
		// If its responder is lost, another one may do it again.
		Idempotent: true,
	})
	if err != nil {
		client.Fail(err)
	}
	fmt.Printf("%s (from %s)\n", answer.Reply.Message.Payload, answer.Reply.ResponderId)
}
