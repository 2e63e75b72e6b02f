var interfaceConfig = { APP_NAME: "Stand-in" };
