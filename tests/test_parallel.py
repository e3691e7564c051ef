from hubretrain.parallel import ahead


def test_ahead_keeps_the_order_and_a_bounded_number_waiting():
    taken = []

    def items():
        for i in range(50):
            taken.append(i)
            yield i

    for i, square in ahead(lambda x: x * x, items(), n_ahead=5):
        assert square == i * i
        assert len(taken) <= i + 7
