// Prints what is published: bin/subscriber 'room/#'
//
// What is published while it is away is missed; SubscribeStream with a client id and a session expiry would get it later.
package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"example.com/stafett-examples/client"
	pb "example.com/stafett-examples/stafett/v1"
)

// subscribe is one stream. It returns how long to wait before the next one.
func subscribe(stop context.Context, pubsub pb.PubSubServiceClient, filter string) (time.Duration, error) {
	request := &pb.SubscribeRequest{Filters: []*pb.TopicFilter{{Filter: filter}}}
	stream, err := pubsub.Subscribe(stop, request)
	if stop.Err() != nil {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	pause := time.Second
	for {
		event, err := stream.Recv()
		if err == io.EOF || stop.Err() != nil {
			return pause, nil
		}
		if err != nil {
			return 0, err
		}
		switch event := event.Event.(type) {
		case *pb.SubscribeResponse_Opened:
			fmt.Println("subscribed to", filter)
		case *pb.SubscribeResponse_Deliveries:
			for _, delivery := range event.Deliveries.Deliveries {
				fmt.Printf("%s: %s\n", delivery.Message.Topic, delivery.Message.Payload)
			}
		case *pb.SubscribeResponse_Closing:
			pause = client.PauseOf(event.Closing)
		}
	}
}

func main() {
	args := client.Args("FILTER")
	conn := client.Connect()
	defer conn.Close()
	pubsub := pb.NewPubSubServiceClient(conn)
	client.KeepOpen(func(stop context.Context) (time.Duration, error) { return subscribe(stop, pubsub, args[0]) })
}
