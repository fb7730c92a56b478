"""Small classes."""
# The plain textbook way to write each of these is the point, not the shortest.
# mypy: ignore-errors
# ruff: noqa: B905

import collections
import heapq
import math
from dataclasses import dataclass, field


class Stack:
    """A stack: the last item in is the first out."""

    def __init__(self):
        self.items = []

    def push(self, item):
        self.items.append(item)

    def pop(self):
        if not self.items:
            raise IndexError("pop from an empty stack")
        return self.items.pop()

    def peek(self):
        return self.items[-1]

    def is_empty(self):
        return len(self.items) == 0

    def __len__(self):
        return len(self.items)


class Queue:
    """A queue: the first item in is the first out."""

    def __init__(self):
        self.items = collections.deque()

    def enqueue(self, item):
        self.items.append(item)

    def dequeue(self):
        if not self.items:
            raise IndexError("dequeue from an empty queue")
        return self.items.popleft()

    def is_empty(self):
        return not self.items

    def __len__(self):
        return len(self.items)


class PriorityQueue:
    """A queue that returns the smallest item first."""

    def __init__(self):
        self.heap = []

    def push(self, priority, item):
        heapq.heappush(self.heap, (priority, item))

    def pop(self):
        return heapq.heappop(self.heap)[1]

    def __len__(self):
        return len(self.heap)


class Node:
    """A node of a linked list."""

    def __init__(self, value, next=None):
        self.value = value
        self.next = next


class LinkedList:
    """A singly linked list."""

    def __init__(self):
        self.head = None
        self.size = 0

    def append(self, value):
        node = Node(value)
        if self.head is None:
            self.head = node
        else:
            current = self.head
            while current.next:
                current = current.next
            current.next = node
        self.size += 1

    def find(self, value):
        current = self.head
        while current:
            if current.value == value:
                return current
            current = current.next
        return None

    def reverse(self):
        previous = None
        current = self.head
        while current:
            current.next, previous, current = previous, current, current.next
        self.head = previous

    def __iter__(self):
        current = self.head
        while current:
            yield current.value
            current = current.next

    def __len__(self):
        return self.size


class TreeNode:
    """A node of a binary tree."""

    def __init__(self, value, left=None, right=None):
        self.value = value
        self.left = left
        self.right = right


class BinarySearchTree:
    """A binary search tree."""

    def __init__(self):
        self.root = None

    def insert(self, value):
        self.root = self._insert(self.root, value)

    def _insert(self, node, value):
        if node is None:
            return TreeNode(value)
        if value < node.value:
            node.left = self._insert(node.left, value)
        else:
            node.right = self._insert(node.right, value)
        return node

    def contains(self, value):
        node = self.root
        while node:
            if value == node.value:
                return True
            node = node.left if value < node.value else node.right
        return False

    def inorder(self):
        result = []

        def visit(node):
            if node:
                visit(node.left)
                result.append(node.value)
                visit(node.right)

        visit(self.root)
        return result


class Trie:
    """A prefix tree of words."""

    def __init__(self):
        self.children = {}
        self.is_word = False

    def insert(self, word):
        node = self
        for char in word:
            node = node.children.setdefault(char, Trie())
        node.is_word = True

    def search(self, word):
        node = self
        for char in word:
            if char not in node.children:
                return False
            node = node.children[char]
        return node.is_word


class Graph:
    """An undirected graph."""

    def __init__(self):
        self.edges = {}

    def add_node(self, node):
        self.edges.setdefault(node, set())

    def add_edge(self, a, b):
        self.add_node(a)
        self.add_node(b)
        self.edges[a].add(b)
        self.edges[b].add(a)

    def neighbors(self, node):
        return self.edges[node]

    def __contains__(self, node):
        return node in self.edges


class LRUCache:
    """A cache that forgets the item that was used longest ago."""

    def __init__(self, capacity):
        self.capacity = capacity
        self.items = collections.OrderedDict()

    def get(self, key):
        if key not in self.items:
            return None
        self.items.move_to_end(key)
        return self.items[key]

    def put(self, key, value):
        if key in self.items:
            self.items.move_to_end(key)
        self.items[key] = value
        if len(self.items) > self.capacity:
            self.items.popitem(last=False)


class UnionFind:
    """Disjoint sets with path compression."""

    def __init__(self, n):
        self.parent = list(range(n))

    def find(self, x):
        if self.parent[x] != x:
            self.parent[x] = self.find(self.parent[x])
        return self.parent[x]

    def union(self, a, b):
        self.parent[self.find(a)] = self.find(b)


class Point:
    """A point in the plane."""

    def __init__(self, x=0, y=0):
        self.x = x
        self.y = y

    def distance(self, other):
        return math.hypot(self.x - other.x, self.y - other.y)

    def __add__(self, other):
        return Point(self.x + other.x, self.y + other.y)

    def __eq__(self, other):
        return (self.x, self.y) == (other.x, other.y)

    def __repr__(self):
        return f"Point({self.x}, {self.y})"


class Vector:
    """A vector of numbers."""

    def __init__(self, *values):
        self.values = values

    def __add__(self, other):
        return Vector(*(a + b for a, b in zip(self.values, other.values)))

    def __mul__(self, factor):
        return Vector(*(x * factor for x in self.values))

    def dot(self, other):
        return sum(a * b for a, b in zip(self.values, other.values))

    def length(self):
        return math.sqrt(sum(x * x for x in self.values))

    def __repr__(self):
        return f"Vector{self.values}"


class Matrix:
    """A matrix of numbers."""

    def __init__(self, rows):
        self.rows = rows

    def transpose(self):
        return Matrix([list(row) for row in zip(*self.rows)])

    def __matmul__(self, other):
        columns = list(zip(*other.rows))
        return Matrix([[sum(a * b for a, b in zip(row, column)) for column in columns] for row in self.rows])

    def __repr__(self):
        return f"Matrix({self.rows})"


class Rectangle:
    """A rectangle with a width and a height."""

    def __init__(self, width, height):
        self.width = width
        self.height = height

    def area(self):
        return self.width * self.height

    def perimeter(self):
        return 2 * (self.width + self.height)


class Circle:
    """A circle with a radius."""

    def __init__(self, radius):
        self.radius = radius

    @property
    def area(self):
        return math.pi * self.radius**2

    @property
    def circumference(self):
        return 2 * math.pi * self.radius


class Person:
    """A person with a name and an age."""

    def __init__(self, name, age):
        self.name = name
        self.age = age

    def greet(self):
        return f"Hello, my name is {self.name}."

    def __repr__(self):
        return f"Person(name={self.name!r}, age={self.age})"


class Animal:
    """An animal that can speak."""

    def __init__(self, name):
        self.name = name

    def speak(self):
        raise NotImplementedError

    def __str__(self):
        return f"{self.__class__.__name__} {self.name}"


class BankAccount:
    """A bank account with a balance."""

    def __init__(self, owner, balance=0):
        self.owner = owner
        self.balance = balance

    def deposit(self, amount):
        if amount <= 0:
            raise ValueError("amount must be positive")
        self.balance += amount

    def withdraw(self, amount):
        if amount > self.balance:
            raise ValueError("insufficient funds")
        self.balance -= amount
        return amount


class Counter:
    """A counter that can go up and down."""

    def __init__(self, start=0):
        self.count = start

    def increment(self):
        self.count += 1
        return self.count

    def decrement(self):
        self.count -= 1
        return self.count

    def reset(self):
        self.count = 0


class Inventory:
    """The items in stock and their prices."""

    def __init__(self):
        self.items = {}

    def add(self, name, price, quantity=1):
        if name in self.items:
            self.items[name]["quantity"] += quantity
        else:
            self.items[name] = {"price": price, "quantity": quantity}

    def remove(self, name):
        if name not in self.items:
            raise KeyError(name)
        del self.items[name]

    def total(self):
        return sum(item["price"] * item["quantity"] for item in self.items.values())


@dataclass
class Book:
    """A book with a title and an author."""

    title: str
    author: str
    year: int = 2000
    tags: list = field(default_factory=list)

    def describe(self):
        return f"{self.title} by {self.author} ({self.year})"


class EventEmitter:
    """Calls functions when an event happens."""

    def __init__(self):
        self.handlers = {}

    def on(self, event, handler):
        self.handlers.setdefault(event, []).append(handler)

    def emit(self, event, *args):
        for handler in self.handlers.get(event, []):
            handler(*args)


class Countdown:
    """An iterator that counts down to one."""

    def __init__(self, start):
        self.current = start

    def __iter__(self):
        return self

    def __next__(self):
        if self.current <= 0:
            raise StopIteration
        self.current -= 1
        return self.current + 1


ALIASES = {
    "Stack": ("Stack", "Stack", "SimpleStack"),
    "Queue": ("Queue", "SimpleQueue", "FIFOQueue"),
    "LinkedList": ("LinkedList", "LinkedList", "SinglyLinkedList"),
    "BinarySearchTree": ("BinarySearchTree", "BST", "BinaryTree"),
    "LRUCache": ("LRUCache", "Cache"),
    "BankAccount": ("BankAccount", "Account"),
    "UnionFind": ("UnionFind", "DisjointSet"),
}
